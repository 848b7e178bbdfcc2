"""Bundles in the MLflow model registry: registered without a pickle, found again by alias, version or digest."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from ldseg.bundle import CARD, BundleError, load_bundle
from ldseg.config import Config
from ldseg.orchestration.tracking import mlflow_client, provenance

CHAMPION = "champion"
CHALLENGER = "challenger"  # the newest, of several of a search the best
IDENTITY = ("digest", "calibration")  # tags: all that a model's numbers depend on
CASES = "cases.parquet"  # of an evaluation: the scores of each case
EVALUATION = "evaluation"  # where a run's artifacts hold them, unless the version's tag PLACE says better
PLACE, MEASURED_ON = "evaluation", "measured_on"  # tags


class RegistryError(ValueError):
    """A model that the registry does not have, or has in a state that can't be trusted."""


def register_bundle(
    tracker: mlflow_client.Tracker,
    bundle: Path,
    name: str,
    *,
    run_id: str,
    metrics: Mapping[str, float],
    evaluation: Path | None = None,
) -> int:
    """Store a bundle as a new version of a registered model; what a run has registered already stays that version.

    Its evidence lies in a place of its own: what the same run registers later does not touch it.

    Args:
        bundle: its folder; the digest is verified.
        name: of the registered model.
        run_id: the MLflow run that made it.
        metrics: evidence on held-out cases, kept as tags of the version.
        evaluation: a folder of tables, measured on this machine, kept as artifacts of the run under "evaluation".

    Returns:
        The version.
    """
    loaded = load_bundle(bundle)
    for known in versions(tracker, name, run_id):
        if {key: known.tags[key] for key in IDENTITY if key in known.tags} == loaded.identity:
            return int(known.version)
    tags = {**loaded.identity, **{key: f"{value:.6g}" for key, value in metrics.items()}}
    place = EVALUATION
    if evaluation is not None and (evaluation / CASES).is_file():
        digest = hashlib.sha256((evaluation / CASES).read_bytes()).hexdigest()
        place = f"{EVALUATION}/{digest[:16]}"
        tags |= {"evidence": f"sha256:{digest}", PLACE: place, MEASURED_ON: provenance.machine()}
    with quiet_mlflow(tracker):
        with mlflow.start_run(run_id=run_id):
            logged = mlflow.pyfunc.log_model(
                name="model",
                loader_module="ldseg.orchestration.pyfunc",
                data_path=str(bundle),
                signature=signature_of(loaded.config),
                model_config={"samples": 8},
                pip_requirements=["ldseg"],
            )
            if evaluation is not None:
                mlflow.log_artifacts(str(evaluation), place)
        with contextlib.suppress(MlflowException):  # it exists already
            tracker.client.create_registered_model(name)
        version = tracker.client.create_model_version(
            name, logged.model_uri, run_id=run_id, model_id=logged.model_id, tags=tags
        )
    return int(version.version)


def versions(tracker: mlflow_client.Tracker, name: str, run_id: str = "") -> list[Any]:
    """The versions of a model, or those that a run made, the oldest first; none where there is no such model."""
    of_run = f" and run_id = '{run_id}'" if run_id else ""
    return sorted(tracker.client.search_model_versions(f"name = '{name}'{of_run}"), key=lambda v: int(v.version))


def challenge(tracker: mlflow_client.Tracker, name: str, version: int) -> None:
    """Give the alias challenger to a version, unless there is a newer one: an old one that is met again stays old."""
    if int(versions(tracker, name)[-1].version) == version:
        tracker.client.set_registered_model_alias(name, CHALLENGER, str(version))


def signature_of(config: Config) -> ModelSignature:
    """Normalised images (-1, C, *grid) float32 -> class probabilities (-1, num_classes, *grid) float32."""
    data = config.data
    free = [-1] * data.spatial_dims
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("float32"), (-1, data.in_channels, *free))]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, data.num_classes, *free))]),
    )


@contextlib.contextmanager
def quiet_mlflow(tracker: mlflow_client.Tracker) -> Iterator[None]:
    """MLflow's fluent calls against one tracker; the environment, which children inherit, stays as it was."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(tracker.uri)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def find_version(tracker: mlflow_client.Tracker, uri: str) -> Any:
    """The model version that models:/name@alias or models:/name/version means.

    Raises:
        RegistryError: there is none.
    """
    body = uri.removeprefix("models:/")
    try:
        if "@" in body:
            name, alias = body.rsplit("@", 1)
            return tracker.client.get_model_version_by_alias(name, alias)
        name, _, version = body.rpartition("/")
        if not name:
            raise RegistryError(f"{uri} names no version; write models:/NAME@{CHAMPION} or models:/NAME/VERSION")
        return tracker.client.get_model_version(name, version)
    except MlflowException as error:
        raise RegistryError(
            f"{uri} is not in the registry at {tracker.uri} ({error.message}); "
            "register a model by platform/tune.py or train.py --register, promote it by platform/promote.py"
        ) from error


def fetch(tracker: mlflow_client.Tracker, version: Any, cache: Path) -> Path:
    """The bundle of a version as a local folder, verified against the digests that were registered.

    Raises:
        RegistryError: the version has no digest, or the files don't match it.
    """
    wanted = registered_identity(version)
    target = cache / "-".join(digest.removeprefix("sha256:") for digest in wanted.values())
    with contextlib.suppress(RegistryError):
        _verify(target, wanted, version)
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        found = download(tracker, version, Path(folder))[1]
        _verify(found, wanted, version)
        shutil.rmtree(target, ignore_errors=True)  # a damaged copy
        with contextlib.suppress(OSError):  # another process was first
            found.rename(target)
    return target


def registered_identity(version: Any) -> dict[str, str]:
    """The digests that were registered: "digest", and "calibration" if there is one.

    Raises:
        RegistryError: there is no digest.
    """
    wanted = {name: version.tags[name] for name in IDENTITY if name in version.tags}
    if not wanted.get("digest", "").startswith("sha256:"):
        raise RegistryError(f"{version.name} version {version.version} has no digest; register it again")
    return wanted


def download(tracker: mlflow_client.Tracker, version: Any, folder: Path) -> tuple[Path, Path]:
    """A version's files as the registry has them, not yet verified: the MLflow model and the bundle inside it.

    Raises:
        RegistryError: they can't be had, or hold no bundle.
    """
    try:
        with quiet_mlflow(tracker):
            model = Path(mlflow.artifacts.download_artifacts(artifact_uri=version.source, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        problem = f"the files of {version.name} version {version.version} can't be had ({error})"
        raise RegistryError(f"{problem}; register the model again") from error
    found = min((p.parent for p in model.rglob(CARD)), key=lambda folder: len(folder.parts), default=None)
    if found is None:
        raise RegistryError(f"{version.name} version {version.version} holds no bundle; register it again")
    return model, found


def _verify(folder: Path, wanted: Mapping[str, str], version: Any) -> None:
    try:
        actual = load_bundle(folder).identity
    except BundleError as error:
        raise RegistryError(f"{version.name} version {version.version} is damaged: {error}") from error
    if actual != wanted:
        raise RegistryError(
            f"{version.name} version {version.version} is {actual} and not what was registered, {wanted}; "
            "don't use it, register the model again"
        )


def resolve_model(uri: str, home: Path) -> Path:
    """A model as a local bundle folder.

    Args:
        uri: a bundle's folder, models:/name@alias or models:/name/version.
        home: of the runs; downloads are kept under models/ there.

    Raises:
        RegistryError, BundleError: there is no such model, or it is not what was registered.
    """
    if not uri.startswith("models:"):
        load_bundle(Path(uri))
        return Path(uri)
    tracker = mlflow_client.connect(home)
    return fetch(tracker, find_version(tracker, uri), home / "models")
