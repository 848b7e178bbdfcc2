"""Reads a Parquet manifest from standard input with bounded memory and time; a program of its own for that.

It prints {"cases": [[case, image], ...]} or {"error": sentence}; killed by its limits, it prints nothing.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

MEMORY_BYTES = 2**29  # beyond what the imported libraries take
CPU_SECONDS = 10
MAX_TEXT = 4096
MAX_UNCOMPRESSED = 2**27


def read(body: bytes, max_cases: int) -> list[list[str]]:
    """Case and image of every row.

    Raises:
        ValueError: it can't be used; the sentence says why.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    _limit_memory()
    meta = pq.read_metadata(pa.BufferReader(body))
    names = [meta.schema.column(k).path for k in range(meta.num_columns)][:9]
    plain = {name.strip().lower(): name for name in names}
    if sorted(plain) != ["case", "image"] or len(names) != 2:
        raise ValueError(f"the manifest must have the columns case and image, it has {', '.join(names)[:300]}")
    if meta.num_rows > max_cases:
        raise ValueError(f"cases: at most {max_cases} in one cohort, got {meta.num_rows}; post several cohorts")
    groups = [meta.row_group(k) for k in range(min(meta.num_row_groups, max_cases + 1))]
    if sum(group.total_byte_size for group in groups) > MAX_UNCOMPRESSED:
        raise ValueError(f"the manifest unpacks to more than {MAX_UNCOMPRESSED} bytes")
    columns: list[list[str]] = [[], []]
    file = pq.ParquetFile(pa.BufferReader(body), read_dictionary=names, metadata=meta)
    for batch in file.iter_batches(batch_size=1024, columns=names):
        for texts, name in zip(columns, ("case", "image"), strict=True):
            column = batch.column(plain[name])
            values = column.dictionary if pa.types.is_dictionary(column.type) else column
            if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)) or column.null_count:
                raise ValueError(f"the column {name} must hold a text in every row")
            if len(values) and pc.max(pc.binary_length(values)).as_py() > MAX_TEXT:
                raise ValueError(f"the column {name} holds a text of more than {MAX_TEXT} bytes")
            texts += column.to_pylist()
        if len(columns[0]) > max_cases:
            raise ValueError(f"cases: at most {max_cases} in one cohort; post several cohorts")
    return [list(pair) for pair in zip(*columns, strict=True)]


def _limit_memory() -> None:
    """What is mapped now, and a bounded part more."""
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY_BYTES,) * 2)


def main() -> int:
    """Read, print."""
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # it takes no address space ahead
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer: dict[str, Any]
    try:
        answer = {"cases": read(sys.stdin.buffer.read(), int(sys.argv[1]))}
    except MemoryError:
        answer = {"error": "the manifest needs too much memory to unpack; post CSV"}
    except ValueError as error:  # pyarrow's errors of a broken file are among them
        answer = {"error": f"{str(error).splitlines()[0][:300]}"}
    except (OSError, KeyError, TypeError) as error:
        answer = {"error": f"the body is no Parquet file that can be read ({type(error).__name__})"}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
