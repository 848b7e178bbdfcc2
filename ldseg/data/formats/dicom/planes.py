"""Planes put in order: where the voxels of a DICOM series lie, or why they are no volume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ldseg.data.errors import CaseError
from ldseg.data.formats.dicom.headers import Frame

SAME_DIRECTION = 1e-3  # of a cosine
SAME_PLACE = 0.02  # of the largest distance of neighbours: nearer planes are one place
EVEN = 0.1  # of the distance of neighbours, which may differ by so much
MAX_TILT = 0.01  # mm in the plane for each mm across it
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from DICOM's left, posterior, superior to NIfTI's right, anterior, superior


def arrange(frames: Sequence[Frame], *, case: str) -> tuple[list[Frame], np.ndarray]:
    """The planes in the order of their places, and the affine of (columns, rows, planes).

    Returns:
        The planes, the first at the lowest place along the product of the directions; the affine (4, 4) float64, voxel
        to world in mm, in NIfTI's axes (DICOM PS3.3, C.7.6.2.1.1, with the first two axes negated).

    Raises:
        CaseError: sizes, spacings or orientations are mixed, planes lie at one place, are missing, or are sheared.
    """
    _check_alike(frames, case)
    along, down = frames[0].directions
    normal = np.cross(along, down)
    if abs(np.linalg.norm(normal) - 1) > SAME_DIRECTION or abs(along @ down) > SAME_DIRECTION:
        raise CaseError(case, f"the rows and columns of {frames[0].file} stand at no right angle", "export it again")
    ordered = sorted(frames, key=lambda frame: float(frame.position @ normal))
    if len(ordered) == 1:
        step = normal * (frames[0].thickness or 1.0)
    else:
        step = _step(ordered, normal, case)
    affine = np.eye(4)
    affine[:3] = np.column_stack([along * frames[0].spacing[1], down * frames[0].spacing[0], step, ordered[0].position])
    return ordered, TO_RAS @ affine


def _check_alike(frames: Sequence[Frame], case: str) -> None:
    numbers = np.stack([np.concatenate([f.position, f.directions.ravel(), f.spacing]) for f in frames])
    if not np.isfinite(numbers).all() or numbers[:, -2:].min() <= 0:
        raise CaseError(case, f"the geometry of {frames[0].file.parent} holds numbers that are none", "export it again")
    kinds: list[np.ndarray] = []
    counts: Counter[int] = Counter()
    for frame in frames:
        known = (k for k, kind in enumerate(kinds) if np.abs(kind - frame.directions).max() <= SAME_DIRECTION)
        kind = next(known, len(kinds))
        if kind == len(kinds):
            kinds.append(frame.directions)
        counts[kind] += 1
    if len(kinds) > 1:
        told = ", ".join(str(count) for _, count in counts.most_common(6))
        problem = f"its {len(frames)} images have {len(kinds)} orientations ({told} images), as a localizer has"
        raise CaseError(case, problem, "choose another series, or export each orientation as its own")
    if len({frame.shape for frame in frames}) > 1:
        sizes = sorted({f"{f.shape[1]} x {f.shape[0]}" for f in frames})
        raise CaseError(
            case, f"its images have several sizes ({', '.join(sizes[:6])})", "export each as its own series"
        )
    if np.ptp([frame.spacing for frame in frames], axis=0).max() > SAME_DIRECTION * numbers[:, -2:].min():
        raise CaseError(case, "its images have several pixel spacings", "export each as its own series")


def _step(ordered: Sequence[Frame], normal: np.ndarray, case: str) -> np.ndarray:
    """(3,) mm from one plane to the next."""
    places = np.array([frame.position @ normal for frame in ordered])
    apart = np.diff(places)
    same = apart <= SAME_PLACE * apart.max()
    if same.any():
        raise _duplicates(ordered, same, case)
    usual = float(np.median(apart))
    if wide := [k for k, distance in enumerate(apart) if abs(distance - usual) > EVEN * usual]:
        k = wide[0]
        more = f", and at {len(wide) - 1} more places" if len(wide) > 1 else ""
        problem = (
            f"between its images {k + 1} and {k + 2} by place lie {apart[k]:.4g} mm, usually {usual:.4g} mm{more}: "
            "images are missing or not evenly spaced"
        )
        raise CaseError(case, problem, "export all of the series, or resample it")
    step = (ordered[-1].position - ordered[0].position) / (len(ordered) - 1)
    straight = np.stack([frame.position for frame in ordered]) - ordered[0].position
    straight -= np.arange(len(ordered))[:, None] * step
    tilt = np.linalg.norm(step - (step @ normal) * normal) / (step @ normal)
    if tilt > MAX_TILT:
        problem = f"its images are shifted against one another by {tilt:.3g} mm a mm (a tilted gantry)"
        raise CaseError(case, problem, "resample it to right angles")
    if np.linalg.norm(straight, axis=1).max() > EVEN * usual:
        raise CaseError(case, "its images do not lie on a straight line", "export all of the series, or resample it")
    return step


def _duplicates(ordered: Sequence[Frame], same: np.ndarray, case: str) -> CaseError:
    k = int(np.argmax(same))
    one, other = ordered[k], ordered[k + 1]
    if one.instance == other.instance and one.file != other.file:
        problem = f"{one.file.name} and {other.file.name} are the same image"
        return CaseError(case, problem, "remove the copies")
    differing = [tag for (tag, a), (_, b) in zip(one.sort, other.sort, strict=True) if a != b]
    by = f", which differ by {' and '.join(differing)}" if differing else ""
    problem = f"its {len(ordered)} images lie at {len(ordered) - int(same.sum())} places{by}"
    return CaseError(case, problem, "export each echo, time or contrast as its own series")
