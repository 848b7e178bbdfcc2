"""A registered version's files: what was registered, without a pickle, with a true signature and an exact geometry."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlflow
import nibabel as nib
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from ldseg.bundle import Bundle, BundleError, load_bundle
from ldseg.data.cohort import Case
from ldseg.data.errors import CaseError
from ldseg.data.reading import read_image
from ldseg.data.volume import Volume, read_label, write_map
from ldseg.orchestration.promotion.gates import Gates
from ldseg.orchestration.promotion.verdict import Check
from ldseg.orchestration.tracking import mlflow_client
from ldseg.orchestration.tracking.registry import (
    RegistryError,
    download,
    quiet_mlflow,
    registered_identity,
    signature_of,
)
from ldseg.posterior.sampling import Posterior

LOADER = "ldseg.orchestration.pyfunc"
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".bin")


def examine(
    tracker: mlflow_client.Tracker, version: Any, gates: Gates, folder: Path, cases: Sequence[Case] = ()
) -> tuple[Bundle | None, list[Check]]:
    """Fetch a version's files from the registry, never from a cache, and check them.

    Args:
        version: of the registry.
        gates: `bundle.calibration` and `bundle.geometry_cases` are used.
        folder: an empty folder for the files.
        cases: whose geometry is tried beside that of an oblique made-up image.

    Returns:
        The bundle, None if it can't be trusted, and the checks.
    """
    try:
        model, path = download(tracker, version, folder)
        bundle = load_bundle(path)
        wanted = registered_identity(version)
    except (RegistryError, BundleError) as error:
        return None, [Check(gate="bundle digest", passed=False, words=str(error))]
    checks = [_digest(bundle, wanted), _calibration(bundle, wanted, gates), _signature(tracker, model, bundle)]
    if not checks[0].passed:
        return None, checks
    return bundle, [*checks, geometry(bundle, folder / "geometry", cases[: gates.bundle.geometry_cases])]


def _digest(bundle: Bundle, wanted: dict[str, str]) -> Check:
    same = bundle.digest == wanted["digest"]
    words = f"{bundle.digest[:19]}..., as registered"
    if not same:
        words = f"the files are {bundle.digest[:19]}... and not {wanted['digest'][:19]}...; register the model again"
    return Check(gate="bundle digest", passed=same, words=words)


def _calibration(bundle: Bundle, wanted: dict[str, str], gates: Gates) -> Check:
    own, registered = bundle.identity.get("calibration"), wanted.get("calibration")
    if own != registered:
        words = f"the files hold {own or 'none'} and not what was registered, {registered or 'none'}; register it again"
        return Check(gate="calibration digest", passed=False, words=words)
    if own is None:
        needed = gates.bundle.calibration
        words = "there is none: run platform/calibrate.py and register the bundle again" if needed else "not calibrated"
        return Check(gate="calibration digest", passed=not needed, words=words)
    return Check(gate="calibration digest", passed=True, words=f"{own[:19]}..., as registered")


def _signature(tracker: mlflow_client.Tracker, model: Path, bundle: Bundle) -> Check:
    """The stored signature is that of the configuration, holds for a prediction, and loads without a pickle."""
    problem = _signature_problem(tracker, model, bundle)
    words = (
        f"{problem}; register the model again" if problem else "as the configuration says, and a prediction keeps it"
    )
    return Check(gate="MLflow signature", passed=not problem, words=words)


def _signature_problem(tracker: mlflow_client.Tracker, model: Path, bundle: Bundle) -> str:
    if pickles := [file.name for file in sorted(model.rglob("*")) if file.suffix in PICKLES]:
        return f"the model holds {pickles[0]}, which may be a pickle"
    try:
        stored = Model.load(str(model))
    except (MlflowException, OSError, ValueError) as error:
        return f"MLmodel can't be read ({type(error).__name__})"
    flavor = stored.flavors.get("python_function") or {}
    loader = flavor.get("loader_module")
    if loader != LOADER:
        return f"MLflow would load it by {loader} and not by {LOADER}"
    if flavor.get("code"):
        return "it brings code of its own, which MLflow would run"
    wanted = signature_of(bundle.config)
    if stored.signature is None:
        return "it has no signature"
    if stored.signature != wanted:
        return "its signature is not that of its configuration"
    data = bundle.config.data
    image = np.zeros((1, data.in_channels, *data.shape), np.float32)
    # one of each member; a model of earlier code takes no settings
    few = {"samples": len(bundle.drawn_by)} if flavor.get("config") else None
    try:
        with quiet_mlflow(tracker):
            found = mlflow.pyfunc.load_model(str(model), model_config=few).predict(image)
    except (MlflowException, RuntimeError, ValueError) as error:
        return f"it does not predict ({type(error).__name__})"
    same = found.shape == (1, data.num_classes, *data.shape) and found.dtype == np.float32
    return (
        "" if same and np.isfinite(found).all() else f"it predicts {found.dtype} {found.shape}, or what is not finite"
    )


def geometry(bundle: Bundle, folder: Path, cases: Sequence[Case]) -> Check:
    """Whether the label of an image, written and opened again, lies on exactly the image's voxels.

    One sample of one step is drawn of an oblique, anisotropic made-up image of an odd shape, and of each case; the
    written label must have the same shape, affine, codes and units, and the same voxels.
    """
    tried = 0
    for volume in _volumes(bundle, folder, cases):
        if isinstance(volume, CaseError):
            return Check(gate="geometry round trip", passed=False, words=str(volume))
        if problem := _round_trip(bundle, volume, folder):
            return Check(gate="geometry round trip", passed=False, words=f"{volume.case}: {problem}")
        tried += 1
    words = f"exact on {tried} image{'s' if tried > 1 else ''}, one of them oblique and made up"
    return Check(gate="geometry round trip", passed=True, words=words)


def _volumes(bundle: Bundle, folder: Path, cases: Sequence[Case]) -> Iterator[Volume | CaseError]:
    data = bundle.config.data
    for case in (Case(name="made-up image", image=oblique_image(bundle, folder)), *cases):
        try:
            yield read_image(case, data)
        except CaseError as error:
            yield error


def oblique_image(bundle: Bundle, folder: Path) -> Path:
    """An image of noise that no axis of which runs along the world's, with a shape that is odd and no multiple."""
    data = bundle.config.data
    shape = tuple(max(3, 3 * n // 4) | 1 for n in data.shape)
    spacing = [*(f * s for f, s in zip((0.9, 1.1, 1.3), data.spacing_mm or (1.0,) * 3, strict=False)), 1.0][:3]
    turned = np.eye(3)
    for axes, angle in (((0, 1), 0.3), ((1, 2), -0.2), ((0, 2), 0.15)):
        turn = np.eye(3)
        turn[np.ix_(axes, axes)] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        turned = turned @ turn
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turned * spacing * [-1, 1, 1], (11.5, -23.25, 7.125)
    channels = (data.in_channels,) if data.in_channels > 1 else ()
    voxels = np.random.default_rng(0).normal(size=(*shape, *channels)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, folder / "oblique.nii.gz")
    return folder / "oblique.nii.gz"


def _round_trip(bundle: Bundle, volume: Volume, folder: Path) -> str:
    try:
        summary = Posterior(bundle).segment(volume, samples=1, num_steps=1)
        name = "label.nii.gz" if volume.header is not None else "label.png"
        path = write_map(folder / name, summary.label, volume)
        if volume.header is not None:
            image, label = nib.load(volume.source), nib.load(path)
            own, written = _placement(image), _placement(label)
            if different := [what for what in own if not np.array_equal(own[what], written[what])]:
                return f"the {different[0]} of the written label differs from the image's"
        found = read_label(path, volume, bundle.config.data)
    except CaseError as error:
        return str(error)
    wanted = np.zeros_like(found)
    for index, value in enumerate(bundle.config.data.label_values):
        wanted[summary.label == value] = index
    return "" if np.array_equal(found, wanted) else "the written label holds other voxels than the model's"


def _placement(image: Any) -> dict[str, np.ndarray]:
    """What says where a NIfTI's voxels are; each transform with its code behind it, (17,), or the code alone."""
    forms = {}
    for name in ("sform", "qform"):
        matrix, code = getattr(image.header, f"get_{name}")(coded=True)
        forms[f"{name} or its code"] = np.array([code]) if matrix is None else np.append(matrix.ravel(), code)
    return {"affine": image.affine, **forms, "units": np.array(image.header.get_xyzt_units())}
