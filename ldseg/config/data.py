"""The working grid and what its voxels mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ldseg.config.parsing import check, check_choices

IGNORED = 255  # in a label's class indices: a voxel that nobody judged, nnU-Net's "ignore"; never a class


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The working grid of a model and what its voxels mean.

    Attributes:
        spatial_dims: 2 (images), 3 (volumes, and 2D+t with time as the last axis).
        shape: working grid in voxels, one entry per axis.
        spacing_mm: working voxel size; None keeps each case's own spacing.
        fit: "pad" resamples to `spacing_mm` and pads (training crops) to `shape`;
            "stretch" resamples each whole case to `shape`, as the authors do.
        in_channels: image channels (3 for RGB).
        label_values: the labels' values in the files, background first; position = class index.
        structures: a name for each foreground value.
        foreground_only: read every label > 0 as the one foreground structure (instance maps).
        flip_axes: working-grid axes that training may mirror.
        intensity: "zscore" after clipping to the 0.5 and 99.5 percentiles, or "minmax" to [0, 1], as the authors do.
        axes: order of the working grid's axes in 3D: "canonical" (right, anterior, superior) or "itk", the file's own
            axes from last to first, as the arrays of SimpleITK have them and the authors use them.
        augment: draw a random affine and flips for each training item.
        max_rotation: of that affine, in degrees: one for every plane of two axes, or one for each of them, in 3D about
            the third, the second and the first axis.
        max_scale: the factor by which it grows or shrinks at most.
        augment_intensity: change contrast, field, sharpness and noise too; False where contrast carries the meaning.
    """

    spatial_dims: int = 3
    shape: tuple[int, ...] = (48, 64, 48)
    spacing_mm: tuple[float, ...] | None = None
    fit: Literal["pad", "stretch"] = "pad"
    in_channels: int = 1
    label_values: tuple[int, ...] = (0, 1)
    structures: tuple[str, ...] = ("foreground",)
    foreground_only: bool = False
    flip_axes: tuple[int, ...] = ()
    intensity: Literal["zscore", "minmax"] = "zscore"
    axes: Literal["canonical", "itk"] = "canonical"
    augment: bool = True
    max_rotation: tuple[float, ...] = (15.0,)
    max_scale: float = 1.15
    augment_intensity: bool = True

    def __post_init__(self) -> None:
        check(self.spatial_dims in (2, 3), f"data.spatial_dims must be 2 or 3 (2D+t is 3), got {self.spatial_dims}")
        check(
            len(self.shape) == self.spatial_dims and min(self.shape) >= 1,
            f"data.shape needs {self.spatial_dims} positive entries, got {self.shape}",
        )
        if self.spacing_mm is not None:
            check(
                len(self.spacing_mm) == self.spatial_dims and min(self.spacing_mm) > 0,
                f"data.spacing_mm needs {self.spatial_dims} positive entries, got {self.spacing_mm}",
            )
        check(
            len(self.structures) == len(self.label_values) - 1,
            f"data.structures {self.structures} must name each foreground value of {self.label_values}",
        )
        check_choices(self, "data")
        check(self.in_channels >= 1, f"data.in_channels must be at least 1, got {self.in_channels}")
        check(
            all(0 <= axis < self.spatial_dims for axis in self.flip_axes),
            f"data.flip_axes {self.flip_axes} must lie in [0, {self.spatial_dims})",
        )
        planes = self.spatial_dims * (self.spatial_dims - 1) // 2
        check(
            len(self.max_rotation) in (1, planes),
            f"data.max_rotation needs {' or '.join(map(str, sorted({1, planes})))} entries, got {self.max_rotation}",
        )
        check(
            all(0 <= angle <= 180 for angle in self.max_rotation) and self.max_scale >= 1,
            f"data.max_rotation must lie in [0, 180] and data.max_scale be at least 1, got {self.max_rotation}, "
            f"{self.max_scale}",
        )

    @property
    def num_classes(self) -> int:
        """Background and structures."""
        return len(self.label_values)
