"""What each member of a model says of the cases that it alone has not seen: their scores, and a calibration by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from ldseg.bundle import Bundle
from ldseg.calibration.conformal import VolumeRow, fit_cross_intervals
from ldseg.calibration.familiarity import Familiarity, MembersFamiliarity
from ldseg.calibration.file import Calibration
from ldseg.calibration.temperature import fit_temperature
from ldseg.data.cohort import Case
from ldseg.data.errors import CaseError
from ldseg.evaluation.calibrate import PROMISES, CaseDrawing, Progress, Promises
from ldseg.evaluation.evaluate import SCORING, EvaluatedCase, Scoring, Settings, evaluate_case
from ldseg.evaluation.result import EvaluationResult, Pooled, Row
from ldseg.metrics.boundary import Reliability
from ldseg.posterior.draws import DRAWS, Draws
from ldseg.posterior.sampling import Posterior, steps_config


@dataclass(frozen=True)
class Fold:
    """The cases of a member.

    Attributes:
        cases: that it was not trained on, labelled; each is in one fold alone.
        reference: that it was trained on, or some of them, to know what is familiar to it.
    """

    cases: Sequence[Case]
    reference: Sequence[Case] = ()


def member_draws(bundle: Bundle, draws: Draws) -> Draws:
    """How each member draws its share of the samples.

    Raises:
        ValueError: they can't be shared evenly.
    """
    share, left = divmod(draws.samples, len(bundle.drawn_by))
    if left or not share:
        raise ValueError(
            f"{draws.samples} samples are not shared evenly by {len(bundle.drawn_by)} members; take a multiple"
        )
    return replace(draws, samples=share)


def evaluate_folds(
    bundle: Bundle,
    folds: Sequence[Fold],
    draws: Draws = DRAWS,
    *,
    scoring: Scoring = SCORING,
    progress: Callable[[EvaluatedCase], None] | None = None,
) -> EvaluationResult:
    """Score each member on its own fold, as `ldseg.evaluation.evaluate.evaluate` scores a model; rows have a `fold`.

    Args:
        bundle: of several members.
        folds: one for each.
        draws: of the whole model; each member draws its share.
        scoring, progress: as of `evaluate`; the number is that among all folds.

    Raises:
        ValueError: the samples can't be shared evenly.
    """
    settings, rows = Settings(member_draws(bundle, draws), scoring), list[Row]()
    pooled = Pooled(Reliability.create(len(bundle.config.data.structures)))
    total = sum(len(fold.cases) for fold in folds)
    for number, (member, fold) in enumerate(zip(bundle.drawn_by, folds, strict=True)):
        posterior = Posterior(member, device=draws.device, precision=draws.precision)
        for case in fold.cases:
            try:
                done = evaluate_case(case, posterior, None, settings, pooled)
            except CaseError as error:
                done = EvaluatedCase(0, 0, {"case": case.name, "error": str(error)})
            rows.append(done.row | {"fold": number})
            if progress is not None:
                progress(replace(done, number=len(rows), total=total, row=rows[-1]))
    return EvaluationResult.create(rows, bundle, None, pooled, scoring.groups)


def calibrate_folds(
    bundle: Bundle,
    folds: Sequence[Fold],
    draws: Draws = DRAWS,
    *,
    promises: Promises = PROMISES,
    progress: Progress = lambda line: None,
) -> tuple[Calibration, list[VolumeRow]]:
    """Calibrate a model of several members on cases each of which one member has not been trained on.

    The intervals are CV+ (`ldseg.calibration.conformal`, which says what is proven of them). The temperature is that of
    a member's mean, and `Posterior` applies it there. A case is familiar by its distance in each member's embeddings.

    Args:
        bundle: of several members, whose cards name what each was trained on.
        folds: one for each.
        draws: of the whole model; each member draws its share. The intervals hold for as many samples and steps.
        promises: of the intervals; cautious masks need cases that no member has seen (`calibrate`).
        progress: told a line for each case.

    Returns:
        The calibration, and the volumes that it was fitted on.

    Raises:
        ValueError: a member was trained on a case of its fold, the cases are fewer than the confidence needs, their
            volumes have not the same unit, cautious masks are asked for, or the samples can't be shared evenly.
    """
    if promises.missed is not None:
        raise ValueError("cautious masks can't be calibrated from folds; calibrate on cases that no fold has")
    share, drawings = member_draws(bundle, draws), list[CaseDrawing]()
    for member, fold in zip(bundle.drawn_by, folds, strict=True):
        trained = {*(member.card.get("split") or {}).get("train", ()), *(case.name for case in fold.reference)}
        if seen := [case.name for case in fold.cases if case.name in trained]:
            raise ValueError(f"{member.path} was trained on {seen[0]}, a case of its fold; give it others")
        drawings.append(CaseDrawing(Posterior(member, device=draws.device, precision=draws.precision), share, progress))
    promises.confidence_of(sum(len(fold.cases) for fold in folds))
    pairs = (drawing.pairs(fold.cases) for drawing, fold in zip(drawings, folds, strict=True))
    temperature = fit_temperature(chain.from_iterable(pairs), seed=draws.seed)
    units = set[str]().union(*(drawing.units for drawing in drawings))
    if len(units) > 1:
        raise ValueError(f"the cases' volumes are in {' and '.join(sorted(units))}; calibrate on one kind")
    rows = [row for drawing in drawings for row in drawing.rows]
    fit = partial(fit_cross_intervals, alpha=promises.alpha, confidence=promises.confidence_of(len(rows)))
    steps = steps_config(bundle.model, draws.steps).num_sample_steps
    intervals = fit([drawing.rows for drawing in drawings], steps=steps, unit=units.pop())
    familiar = [drawing.familiarity(fold.reference) for drawing, fold in zip(drawings, folds, strict=True)]
    known = [familiarity for familiarity in familiar if isinstance(familiarity, Familiarity)]
    familiarity = MembersFamiliarity(tuple(known)) if len(known) == len(familiar) else None
    return Calibration(intervals, temperature, bundle.digest, familiarity=familiarity), rows
