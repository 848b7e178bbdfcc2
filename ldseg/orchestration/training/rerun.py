"""The same training again, from what its MLflow run says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import mlflow

from ldseg.config import Config, ConfigError
from ldseg.data.content import data_digest, data_digests
from ldseg.orchestration.tracking import provenance
from ldseg.orchestration.training.run import TrainRun, read_data

WARNED = {
    provenance.COMMIT: "the code is",
    provenance.LOCK: "the installed packages are",
    provenance.MACHINE: "the machine is",
}
ELSEWHERE = ("name", "home", "log")  # of a plan: what the new run has of its own


def plan_tag(run: TrainRun) -> dict[str, str]:
    """What a run is, as a tag that `planned` reads."""
    values = {key: value for key, value in dataclasses.asdict(run).items() if key not in ELSEWHERE}
    return {provenance.PLAN: json.dumps(values, separators=(",", ":"))}


def tags(run: TrainRun, digests: dict[str, str]) -> dict[str, str]:
    """All that a run of its own is to log of itself; the cases' digests are kept beside its checkpoints too."""
    provenance.write_digests(run.folder, digests)
    return provenance.surroundings() | plan_tag(run) | {provenance.DATA: data_digest(digests)}


def digests(run: TrainRun) -> dict[str, str]:
    """Of the cases that the run trains, validates or tests on."""
    cohort = read_data(run)
    return data_digests((c for c in cohort.cases if c.split), Config.from_dict(run.config).data)


def planned(client: mlflow.MlflowClient, run_id: str, *, name: str, home: Path, data: str = "") -> tuple[TrainRun, str]:
    """The training that an MLflow run was, under another name.

    Args:
        client: of the tracking server that has the run.
        run_id: as MLflow shows it.
        name, home: of the new run.
        data: where the cohort lies now; "" takes the run's own place.

    Returns:
        The run, and one line for each thing that differs from then, "" for none.

    Raises:
        ConfigError: there is no such run, it does not say what it was, or the data are no longer the same.
    """
    try:
        found = client.get_run(run_id)
    except mlflow.exceptions.MlflowException as error:
        raise ConfigError(f"there is no run {run_id} in MLflow ({str(error).splitlines()[0]})") from error
    then: dict[str, str] = dict(found.data.tags)
    if provenance.PLAN not in then:
        raise ConfigError(f"the run {run_id} is no training, or of a version that did not log what it was made of")
    values: dict[str, Any] = json.loads(then[provenance.PLAN])
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(TrainRun)})
    if unknown:
        raise ConfigError(f"the run {run_id} is of another version of this program: its {unknown[0]} is unknown here")
    if data:
        values["data"] = data
    values["test_cases"] = tuple(values["test_cases"])
    values["config"] = Config.from_dict(values["config"]).to_dict()
    run = TrainRun(name=name, home=str(home), **values)
    now = digests(run)
    if data_digest(now) != then.get(provenance.DATA):
        before = provenance.read_digests(home / "train" / found.info.run_name)
        differs = sorted(case for case in {*before, *now} if before.get(case) != now.get(case))
        which = f", the case {differs[0]} for one" if before and differs else ""
        raise ConfigError(f"the data under {run.data} are not those of the run {run_id}{which}; name them by --data")
    here = provenance.surroundings()
    changed = [
        f"note: {what} not as then: {then.get(tag, 'not logged')} then, {here[tag]} now"
        for tag, what in WARNED.items()
        if then.get(tag) != here[tag]
    ]
    return run, "\n".join(changed)
