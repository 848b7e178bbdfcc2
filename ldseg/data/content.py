"""Cases known by their content: the same image under another name is the same case."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence

import numpy as np

from ldseg.config import DataConfig
from ldseg.data.cohort import Case
from ldseg.data.errors import CaseError
from ldseg.data.reading import read_case, read_image
from ldseg.data.volume import Volume

logger = logging.getLogger(__name__)


def labels_digest(raters: Sequence[np.ndarray]) -> str:
    """ "sha256:..." of the raters' class indices, each (*spatial) uint8, in their order; "" for none."""
    if not raters:
        return ""
    digest = hashlib.sha256(repr([rater.shape for rater in raters]).encode())
    for rater in raters:
        digest.update(np.ascontiguousarray(rater, dtype=np.uint8).data)
    return f"sha256:{digest.hexdigest()}"


def content_columns(volume: Volume, raters: Sequence[np.ndarray], patient: str | None) -> dict[str, float | int | str]:
    """What names a case in a table of scores: digests `content` and, where it has labels, `labels`; its `patient`."""
    found = {"content": volume.content_digest, "labels": labels_digest(raters), "patient": patient}
    return {name: value for name, value in found.items() if value}


def content_digests(cases: Iterable[Case], data: DataConfig) -> dict[str, str]:
    """The digest of each case's image (`Volume.content_digest`) by the case's name.

    Each image is read once. A case that can't be read is left out: nothing was trained on it either.
    """
    found = {}
    for case in cases:
        try:
            volume = read_image(case, data)
        except CaseError as error:
            logger.warning("left out: %s", error)
            continue
        found[case.name] = volume.content_digest
    return found


def data_digests(cases: Iterable[Case], data: DataConfig) -> dict[str, str]:
    """ "sha256:..." of each case's split, image and labels by the case's name, or "unreadable".

    Every image and label is read once, which a training does anyway.
    """
    found = {}
    for case in cases:
        try:
            volume, raters = read_case(case, data)
        except CaseError:
            found[case.name] = "unreadable"
            continue
        found[case.name] = _sha256(f"{case.split} {volume.content_digest} {labels_digest(raters)}".encode())
    return found


def data_digest(digests: dict[str, str]) -> str:
    """One digest of all cases'."""
    return _sha256(json.dumps(digests, sort_keys=True).encode())


def _sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
