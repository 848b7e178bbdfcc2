"""What a phantom cohort consists of."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_SHAPES: dict[str, dict[int, tuple[int, ...]]] = {
    "organ": {2: (64, 64), 3: (32, 32, 24)},
    "echo": {3: (64, 64, 12)},
}
DEFAULT_SPACINGS: dict[str, dict[int, tuple[float, ...]]] = {  # mm, frames in s
    "organ": {2: (1.0, 1.0), 3: (1.0, 1.0, 1.5)},
    "echo": {3: (1.0, 1.0, 0.04)},
}


@dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """What a phantom cohort consists of; `shape` and `spacing_mm` default by `dims` and are in canonical axis order.

    `kind` "echo" is 2D+t: its last axis is time, in frames and seconds.
    """

    kind: str = "organ"
    dims: int = 3
    cases: int = 40
    raters: int = 4
    shape: tuple[int, ...] | None = None
    spacing_mm: tuple[float, ...] | None = None
    seed: int = 0
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)

    def __post_init__(self) -> None:
        if self.kind not in DEFAULT_SHAPES:
            raise ValueError(f"kind must be one of {', '.join(DEFAULT_SHAPES)}, got {self.kind!r}")
        if self.dims not in DEFAULT_SHAPES[self.kind]:
            allowed = " or ".join(map(str, DEFAULT_SHAPES[self.kind]))
            raise ValueError(f"dims must be {allowed} for {self.kind} phantoms, got {self.dims}")
        if self.cases < 1 or self.raters < 1:
            raise ValueError(f"cases and raters must be at least 1, got {self.cases} and {self.raters}")
        if len(self.grid) != self.dims or min(self.grid[:2]) < 16 or min(self.grid) < self.least:
            raise ValueError(f"shape needs {self.dims} entries of at least {self.least} voxels, got {self.grid}")
        if len(self.voxel_mm) != self.dims or min(self.voxel_mm) <= 0:
            raise ValueError(f"spacing_mm needs {self.dims} positive entries, got {self.voxel_mm}")
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"fractions must add up to 1, got {self.fractions}")

    @property
    def grid(self) -> tuple[int, ...]:
        """Voxels per canonical axis."""
        return self.shape or DEFAULT_SHAPES[self.kind][self.dims]

    @property
    def least(self) -> int:
        """Voxels that each axis must have, at the least; a sequence may have few frames."""
        return 4 if self.kind == "echo" else 16

    @property
    def name(self) -> str:
        """Of the cohort and, with a number, of its cases."""
        return "echo" if self.kind == "echo" else f"phantom{self.dims}d"

    @property
    def voxel_mm(self) -> tuple[float, ...]:
        """Mean voxel size per canonical axis; cases differ from it by up to 5 %."""
        return self.spacing_mm or DEFAULT_SPACINGS[self.kind][self.dims]
