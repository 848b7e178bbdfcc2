"""A case's files as arrays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ldseg.config import DataConfig
from ldseg.data.cohort import Case
from ldseg.data.volume import MAX_VOXELS, Volume, read_label, read_volume, with_content


def read_image(case: Case, data: DataConfig, *, max_voxels: int = MAX_VOXELS) -> Volume:
    """A case's image; `max_voxels` bounds what its header may claim.

    Raises:
        CaseError: see `ldseg.data.volume.read_volume`; or nothing is in it.
    """
    how = {"spatial_dims": data.spatial_dims, "in_channels": data.in_channels, "max_voxels": max_voxels}
    return with_content(read_volume(case.image, case=case.name, **how))


def read_case(case: Case, data: DataConfig) -> tuple[Volume, list[np.ndarray]]:
    """A case's image and its raters' labels as class indices, each (*spatial) uint8; none for an unlabelled case.

    Voxels that a rater left open ("ignore" in dataset.json) are `ldseg.config.IGNORED`.

    Raises:
        CaseError: see `ldseg.data.volume.read_volume` and `read_label`.
    """
    volume = read_image(case, data)
    coded = replace(data, label_values=case.label_values) if case.label_values else data
    return volume, [read_label(path, volume, coded, case.ignore) for path in case.labels]
