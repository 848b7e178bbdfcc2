"""The library's face: a model, what it says of a case, and how good it is, in a few lines of Python."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import nibabel as nib
import numpy as np

from ldseg.bundle import Bundle
from ldseg.data.cohort import Case, Cohort, for_model, read_cohort
from ldseg.data.errors import CaseError
from ldseg.data.formats import nifti
from ldseg.data.reading import read_image
from ldseg.data.volume import Volume, as_volume, stem, with_content
from ldseg.posterior.draws import Draws
from ldseg.posterior.sampling import Posterior
from ldseg.posterior.summary import KEPT_SAMPLES, PosteriorSummary
from ldseg.results.publication import publish

if TYPE_CHECKING:
    import pandas

    from ldseg.evaluation.result import EvaluationResult

logger = logging.getLogger(__name__)

__all__ = ["Model", "Result", "StructureVolume", "evaluate", "load", "read_cohort"]

Image: TypeAlias = "str | Path | Case | nib.spatialimages.SpatialImage | tuple[np.ndarray, np.ndarray]"
"""A path, a case of a cohort, a nibabel image, or an array in the axes of a file with its affine (4, 4) in mm."""


def load(model: str | Path, device: str = "cpu") -> Model:
    """A model, ready to segment.

    Args:
        model: a bundle's folder, or models:/NAME@ALIAS or models:/NAME/VERSION of the registry under LDSEG_HOME.
        device: where it runs, such as "cpu" or "cuda".

    Raises:
        ValueError: there is no such folder or version, or the bundle is incomplete or was changed.
        ModuleNotFoundError: the registry needs the extra [train].
    """
    from ldseg.orchestration.models import load_model

    try:
        return Model(load_model(str(model), None), device)
    except ModuleNotFoundError as error:
        cure = "pip install 'ldseg[train]'"
        raise ModuleNotFoundError(f"{model} is in a registry, which needs the extra [train]: {cure}") from error


def evaluate(
    model: Model | str | Path, cohort: Cohort | str | Path, samples: int = 8, steps: int | None = None, seed: int = 0,
    split: str = "test", control: Model | None = None,
) -> EvaluationResult:  # fmt: skip
    """Score a model on a cohort, like `ldseg evaluate`; what it was trained on is never scored as held out.

    Args:
        model: of `load`, or what `load` takes.
        cohort: of `read_cohort`, or what `read_cohort` takes.
        samples, steps, seed: see `Model.segment`.
        split: "train", "validation", "test" or "all".
        control: the no-diffusion control, a model trained with loss.deterministic.

    Returns:
        `rows` of numbers (`ldseg.evaluation.evaluate.evaluate`), their `summary`, `table()` and `write(folder)`.

    Raises:
        ValueError: no case is left, its structures have other names than the model's, or a number is out of range.
    """
    from ldseg.evaluation.cases import left_out, select_cases
    from ldseg.evaluation.evaluate import evaluate as score

    model = model if isinstance(model, Model) else load(model)
    matched, by_number = for_model(model._cohort(cohort), model.bundle.config.data)
    if by_number:
        logger.warning(by_number)
    cases: list[Case | CaseError] = list(select_cases(matched, model.bundle.card, split)[0])
    cases += left_out(matched, model.bundle.card, split)
    draws = Draws(samples, steps, seed, model.device)
    return score(model.bundle, cases, draws, control=None if control is None else control.bundle)


class Model:
    """A trained model; make one by `ldseg.load`.

    Attributes:
        bundle: its weights, configuration, card and calibration.
        device: where it runs.
        structures: what it segments.
    """

    def __init__(self, bundle: Bundle, device: str = "cpu") -> None:
        self.bundle, self.device, self.structures = bundle, device, tuple(bundle.config.data.structures)

    def __repr__(self) -> str:
        dims, calibrated = self.bundle.config.data.spatial_dims, ", calibrated" if self.bundle.calibration else ""
        return f"<Model {self.bundle.path.name}: {dims}D, {', '.join(self.structures)}{calibrated}, on {self.device}>"

    def segment(
        self, image: Image, samples: int = 8, steps: int | None = None, seed: int = 0, name: str = ""
    ) -> Result:
        """Segment one image: the same numbers to the last bit as `ldseg segment` with the same samples and seed.

        Args:
            image: a path (NIfTI, PNG, BMP, TIFF), a case of a cohort, a nibabel image, or a pair of an array in the
                file's axes (channels last) and its affine (4, 4), voxel to world in mm.
            samples: draws of the posterior.
            steps: denoiser calls a sample; None takes the model's own.
            seed: of the samples.
            name: of the case (default: its file's name without the ending, "image" where there is no file).

        Raises:
            CaseError: the image can't be used; its sentence says why and what helps.
            ValueError: `samples` or `steps` is out of range.
        """
        draws, posterior = Draws(samples, steps, seed, self.device), Posterior(self.bundle, device=self.device)
        drawn = posterior.draw(self._volume(image, name), draws)
        return Result(drawn.grid.volume, posterior.summarise(drawn, keep_samples=KEPT_SAMPLES), self.structures)

    def segment_many(
        self, cohort: Cohort | str | Path | Iterable[Image], samples: int = 8, steps: int | None = None, seed: int = 0,
        on_error: str = "raise",
    ) -> Iterator[Result]:  # fmt: skip
        """Segment one image after the other; each result can be let go before the next is made.

        Args:
            cohort: of `read_cohort`, what `read_cohort` takes, or images as `segment` takes them.
            samples, steps, seed: see `segment`.
            on_error: "raise" ends with the CaseError of an image that can't be used, "skip" goes on with the next. What
                is listed at a path and can't be used comes last; of a cohort that was read it is in its `problems`.

        Raises:
            CaseError: an image can't be used, and `on_error` is "raise".
            ValueError: a number is out of range, or `on_error` is neither.
        """
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error must be "raise" or "skip", got {on_error!r}')
        images: Iterable[Image | CaseError]
        if isinstance(cohort, str | Path):
            read = self._cohort(cohort)
            images = [*read.cases, *read.problems]
        else:
            images = cohort.cases if isinstance(cohort, Cohort) else cohort
        for image in images:
            try:
                if isinstance(image, CaseError):
                    raise image
                yield self.segment(image, samples, steps, seed)
            except CaseError:
                if on_error == "raise":
                    raise

    def _cohort(self, cohort: Cohort | str | Path) -> Cohort:
        if isinstance(cohort, Cohort):
            return cohort
        return read_cohort(cohort, foreground_only=self.bundle.config.data.foreground_only)

    def _volume(self, image: Image, name: str) -> Volume:
        data = self.bundle.config.data
        if isinstance(image, str | Path):
            image = Case(name=name or stem(Path(image)), image=Path(image))
        if isinstance(image, Case):
            return read_image(replace(image, name=name or image.name), data)
        image = _in_memory(image)
        path, native = Path(image.get_filename() or "image"), np.asanyarray(image.dataobj)
        axes = {"spatial_dims": data.spatial_dims, "in_channels": data.in_channels}
        affine = nifti.in_mm(image.affine, image.header)
        return with_content(as_volume(native, affine, image.header, path, case=name or stem(path), **axes))


def _in_memory(image: Any) -> nib.Nifti1Image:
    """A NIfTI of a nibabel image or of an array and its affine."""
    if isinstance(image, nib.Nifti1Image):
        return image
    if isinstance(image, nib.spatialimages.SpatialImage):
        return nib.Nifti1Image.from_image(image)
    if not (isinstance(image, tuple) and len(image) == 2 and np.shape(image[1]) == (4, 4)):
        raise TypeError("an image must be a path, a nibabel image, or a pair (array, affine) with an affine (4, 4)")
    array = np.asarray(image[0])
    if array.dtype in (np.bool_, np.int64, np.uint64, np.float16):  # which NIfTI does not have, or nibabel not write
        array = array.astype(np.float64)
    made = nib.Nifti1Image(array, np.asarray(image[1], dtype=np.float64))
    made.header.set_xyzt_units("mm", "sec")
    return made


@dataclass(frozen=True)
class StructureVolume:
    """How large a structure is.

    Attributes:
        interval: (low, high) that holds the true size of `promise` of new cases; None where the model was not
            calibrated for this number of samples and steps.
        promise: such as 0.9; None without an interval.
        percentiles: the 5th, 50th and 95th over the samples, the model's own opinion, without a promise.
        samples: (K,) the size in each sample.
        unit: of all of them: "ml", or "mm2" in 2D.
    """

    interval: tuple[float, float] | None
    promise: float | None
    percentiles: dict[int, float]
    samples: np.ndarray
    unit: str

    @property
    def median(self) -> float:
        """Over the samples."""
        return self.percentiles[50]

    def __repr__(self) -> str:
        low, high = self.interval or (self.percentiles[5], self.percentiles[95])
        told = f"{self.promise:.0%} interval" if self.promise else "5th to 95th percentile of the samples"
        return f"{self.median:.4g} {self.unit} ({told} {low:.4g} to {high:.4g})"


@dataclass(frozen=True, repr=False, eq=False)
class Result:
    """What a model says of one image. Arrays have the image's voxels: its axes but for those of length one.

    Attributes:
        image: the image, with its affine, spacing in mm and header.
        summary: all that the samples say (`ldseg.posterior.summary.PosteriorSummary`).
        structures: their names.
    """

    image: Volume
    summary: PosteriorSummary
    structures: tuple[str, ...]

    @property
    def case(self) -> str:
        """The case's name."""
        return self.summary.case

    @property
    def label(self) -> np.ndarray:
        """(*spatial) the best single answer, in the model's label values."""
        return self.summary.label

    @property
    def probability(self) -> dict[str, np.ndarray]:
        """For each structure its mean probability over the samples, (*spatial) float32 in [0, 1]."""
        return dict(zip(self.structures, self.summary.mean_probability, strict=True))

    @property
    def entropy(self) -> np.ndarray:
        """(*spatial) float32, of the mean probability, in nats."""
        return self.summary.predictive_entropy

    @property
    def variance(self) -> np.ndarray:
        """(*spatial) float32, of the probability over the samples, summed over the classes."""
        return self.summary.sample_variance

    @cached_property
    def volumes(self) -> dict[str, StructureVolume]:
        """For each structure its size: an interval with a promise, and what the samples say."""
        row, unit, promises = self.summary.numbers(), self.summary.unit, self.summary.intervals
        found = {}
        for name, samples in self.summary.volumes.items():
            column = f"{name}_volume_{unit}"
            ends = (float(row[f"{column}_low"]), float(row[f"{column}_high"])) if f"{column}_low" in row else None
            promise = 1 - promises.alpha if ends and promises else None
            percentiles = {p: float(row[f"{column}_p{p:02d}"]) for p in (5, 50, 95)}
            found[name] = StructureVolume(ends, promise, percentiles, samples, unit)
        return found

    @property
    def unfamiliar(self) -> bool | None:
        """Whether the image is unlike those that the model was trained on; None where its calibration can't tell."""
        return None if self.summary.judgement is None else bool(self.summary.judgement.unfamiliar)

    @property
    def agreement(self) -> float:
        """Of the samples: their mean pairwise Dice, in the mean over the structures, in [0, 1]."""
        return float(self.summary.agreement["mean"])

    def __repr__(self) -> str:
        volumes = ", ".join(f"{name} {volume!r}" for name, volume in self.volumes.items())
        shape, warning = " x ".join(map(str, self.label.shape)), "; unfamiliar" if self.unfamiliar else ""
        return f"<Result {self.case}, {shape}: {volumes}; agreement {self.agreement:.3f}{warning}>"

    def save(self, folder: str | Path) -> Path:
        """Write the maps as `ldseg segment` does, a BIDS derivative in FOLDER/maps/CASE, whole or not at all.

        Returns:
            FOLDER/maps/CASE.

        Raises:
            OSError: there is no room, or the folder can't be written.
        """
        target = Path(folder) / "maps" / self.case
        publish(self.summary, self.image, self.structures, target)
        return target

    def plot(self, path: str | Path) -> Path:
        """Draw image, segmentation, mean probability and entropy side by side, as PNG; returns its path."""
        from ldseg.pictures.case import draw_case

        return draw_case(self.image, self.summary, Path(path))

    def table(self) -> pandas.DataFrame:
        """One row of numbers, named like the columns of `ldseg segment`'s table."""
        import pandas

        return pandas.DataFrame([self.summary.numbers()])
