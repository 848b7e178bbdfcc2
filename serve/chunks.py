"""How the samples of a case are cut."""

from __future__ import annotations

from collections.abc import Iterator


def partition(samples: int, chunk_size: int) -> Iterator[list[int]]:
    """Sample indices in chunks of a fixed size: the order of addition, whoever draws them."""
    for start in range(0, samples, chunk_size):
        yield list(range(start, min(start + chunk_size, samples)))
