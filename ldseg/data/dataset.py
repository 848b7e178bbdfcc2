"""Training and validation items: cases on the working grid, kept in a shared cache on disk and mapped into memory."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from isal import isal_zlib
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import Dataset

from ldseg.config import IGNORED, DataConfig
from ldseg.data.augment import Augmenter
from ldseg.data.cohort import Case, Cohort
from ldseg.data.errors import CaseError, CohortError
from ldseg.data.formats.readers import made_of
from ldseg.data.grid import label_to_grid, prepare
from ldseg.data.reading import read_case
from ldseg.files import write_atomically

CACHE_VERSION = 3  # raise it when what is stored or how it is computed changes
ARRAYS = ("image", "labels", "inside")  # of a PreparedCase
FOREGROUND_CROPS = 0.67  # share of training crops around a voxel of a structure

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedCase:
    """A case on the working grid.

    Attributes:
        case: its name.
        image: (C, *grid) float32.
        labels: (R, *grid) uint8 class indices, one per rater.
        inside: (*grid) bool, see GridCase.
        spacing: of the grid's voxels, per axis.
    """

    case: str
    image: np.ndarray
    labels: np.ndarray
    inside: np.ndarray
    spacing: tuple[float, ...]


class TrainingSet(Dataset[dict[str, Any]]):
    """Items of a list of labelled cases.

    A training item is a crop of exactly `data.shape`: {"image": (C, *shape) float32, "label": (*shape) int64 of one
    rater drawn at random, "case": name}, augmented if `data.augment`. Its random draws depend on (seed, epoch, index)
    alone.

    A validation item is the whole case on its working grid (at least `data.shape`, never cropped, so that cases may
    differ in shape), not augmented, with the first rater as "label", and further "labels": (R, *grid) int64 and
    "inside": (*grid) bool.

    Attributes:
        problems: one sentence for each case that was left out.
        has_ignored: whether labels may hold IGNORED, voxels that nobody judged.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        data: DataConfig,
        multiple: tuple[int, ...],
        cache: Path | None = None,
        training: bool = True,
        *,
        seed: int = 0,
    ) -> None:
        """Read and prepare all cases, or take them from `cache`, a folder that processes may share.

        Cases in a cache are mapped into memory, so that a cohort may be larger than it; without one they lie in it.

        Raises:
            CohortError: no case is left.
        """
        self.data, self.training, self.seed = data, training, seed
        # in shared memory, so that worker processes that outlive an epoch see set_epoch
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()
        self.has_ignored = any(case.ignore is not None for case in cases)
        self.problems: list[CaseError] = []
        self.prepared: list[PreparedCase] = []
        for number, case in enumerate(cases, start=1):
            try:
                self.prepared.append(load_prepared(case, data, multiple, cache))
            except CaseError as error:
                self.problems.append(error)
                logger.warning("left out: %s", error)
            if number % 100 == 0:
                logger.info("prepared %d of %d cases", number, len(cases))
        if not self.prepared:
            cure = (
                f"first of {len(self.problems)} problems: {self.problems[0]}"
                if self.problems
                else "give labelled cases"
            )
            raise CohortError(f"no case is left to {'train' if training else 'validate'} on; {cure}")
        self._augmenter = Augmenter.create(data) if training and data.augment else None

    def __len__(self) -> int:
        return len(self.prepared)

    def set_epoch(self, epoch: int) -> None:
        """Draw other raters, crops and augmentations; the same epoch gives the same ones again."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        prepared = self.prepared[index]
        return self._training_item(prepared, index) if self.training else _validation_item(prepared)

    def _training_item(self, prepared: PreparedCase, index: int) -> dict[str, Any]:
        generator = np.random.default_rng((self.seed, int(self._epoch), index))
        labels = prepared.labels[generator.integers(len(prepared.labels))]
        # around what any rater drew: a crop's place must not tell what the one that was drawn says
        start = _crop_start(prepared.labels, self.data.shape, generator)
        image, label = torch.from_numpy(prepared.image), torch.from_numpy(labels)
        if self._augmenter is not None:
            image, label = self._augmenter.draw(
                image, label, start=start, spacing=prepared.spacing, seed=int(generator.integers(2**63))
            )
        else:
            window = tuple(slice(s, s + n) for s, n in zip(start, self.data.shape, strict=True))
            image, label = image[:, *window].clone(), label[window].long()
        return {"image": image, "label": label, "case": prepared.case}


def check_trainable(cohort: Cohort, data: DataConfig) -> None:
    """See that a cohort can be trained on, before anything is started: one sentence in place of one for each case.

    Cases are read until one of each split can be used, that of training with a structure in its label.

    Raises:
        CohortError: no case of the training or of the validation split can be used, or no training label has anything.
    """
    for split in ("train", "validation"):
        problems, cases = [], cohort.split(split)
        for case in cases:
            try:
                raters = read_case(case, data)[1]
            except CaseError as error:
                problems.append(error)
                continue
            if split == "validation" or any(((rater > 0) & (rater != IGNORED)).any() for rater in raters):
                break
        else:
            who = f"of the {len(cases)} {split} cases of {cohort.name}"
            if len(problems) == len(cases):
                raise CohortError(f"none {who} can be used; the first: {problems[0]}")
            cure = "correct the labels, or their values in dataset.json"
            raise CohortError(f"no label {who} holds a structure, all they hold is background; {cure}")


def load_prepared(case: Case, data: DataConfig, multiple: tuple[int, ...], cache: Path | None) -> PreparedCase:
    """Prepare a case, or take it from the cache; an entry that can't be read is built again.

    Raises:
        CaseError: the case can't be used.
    """
    if not case.labels:
        raise CaseError(case.name, "it has no label", "give one in the manifest or leave the case out")
    if cache is None:
        return _build(case, data, multiple)
    entry = Path(cache) / f"{cache_key(case, data, multiple)}.safetensors"
    if entry.is_file():
        try:
            return _read_entry(entry)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            logger.warning("the cache entry %s can't be read (%s) and is built again", entry, error)
    _write_entry(entry, _build(case, data, multiple))
    return _read_entry(entry)


def cache_key(case: Case, data: DataConfig, multiple: tuple[int, ...]) -> str:
    """Names what a prepared case depends on: parameters, and the files' paths, sizes and times of change.

    Raises:
        CaseError: a file is missing.
    """
    parameters = (
        CACHE_VERSION, data.spatial_dims, data.shape, data.spacing_mm, data.fit, data.in_channels,
        case.ignore, case.label_values or data.label_values, data.foreground_only, tuple(multiple), case.name,
    )  # fmt: skip
    digest = hashlib.sha256(repr(parameters).encode())
    for file in (part for whole in (case.image, *case.labels) for part in made_of(whole)):
        try:
            stat = file.stat()
        except OSError as error:
            problem = f"{file} is missing ({error.strerror})"
            raise CaseError(case.name, problem, "put the file there or drop the case") from error
        digest.update(repr((str(file.resolve()), stat.st_size, stat.st_mtime_ns)).encode())
    return digest.hexdigest()


def _build(case: Case, data: DataConfig, multiple: tuple[int, ...]) -> PreparedCase:
    volume, raters = read_case(case, data)
    grid = prepare(volume, data, multiple)
    labels = [label_to_grid(rater, grid).to(torch.uint8).numpy() for rater in raters]
    return PreparedCase(case.name, grid.image.numpy(), np.stack(labels), grid.inside.numpy(), grid.spacing)


def _write_entry(entry: Path, prepared: PreparedCase) -> None:
    arrays = {name: torch.from_numpy(np.ascontiguousarray(getattr(prepared, name))) for name in ARRAYS}
    about = {"case": prepared.case, "spacing": json.dumps(prepared.spacing), "checksum": _checksum(arrays)}
    write_atomically(entry, save(arrays, about))


def _read_entry(entry: Path) -> PreparedCase:
    """An entry as views of its file: what a training does not touch takes no memory, and processes share the rest.

    Raises:
        ValueError: it is not what was written.
    """
    with safe_open(entry, framework="pt") as file:
        arrays = {name: file.get_tensor(name) for name in ARRAYS}
        about = file.metadata() or {}
    if about["checksum"] != _checksum(arrays):
        raise ValueError("its content has changed")
    image, labels, inside = (arrays[name].numpy() for name in ARRAYS)
    return PreparedCase(about["case"], image, labels, inside, tuple(json.loads(about["spacing"])))


def _checksum(arrays: dict[str, Tensor]) -> str:
    total = 0
    for name in ARRAYS:
        total = isal_zlib.crc32(arrays[name].view(torch.uint8).numpy(), total)
    return f"{total:08x}"


def _validation_item(prepared: PreparedCase) -> dict[str, Any]:
    labels: Tensor = torch.from_numpy(prepared.labels).long()
    return {
        "image": torch.from_numpy(prepared.image),
        "label": labels[0],
        "labels": labels,
        "inside": torch.from_numpy(prepared.inside),
        "case": prepared.case,
    }


def _crop_start(labels: np.ndarray, shape: tuple[int, ...], generator: np.random.Generator) -> tuple[int, ...]:
    """First voxel of a crop that lies in the grid, often around a structure in any of `labels` (R, *grid)."""
    spare = np.asarray(labels.shape[1:], dtype=np.int64) - np.asarray(shape, dtype=np.int64)
    if not spare.any():
        return (0,) * len(shape)
    start = generator.integers(spare + 1)
    if generator.random() < FOREGROUND_CROPS:
        foreground = np.flatnonzero(np.any((labels > 0) & (labels != IGNORED), axis=0))
        if foreground.size:
            voxel = np.unravel_index(foreground[generator.integers(foreground.size)], labels.shape[1:])
            start = np.clip(np.asarray(voxel) - np.asarray(shape) // 2, 0, spare)
    return tuple(int(value) for value in start)
