"""MLflow, with one run for one thing whatever crashes and is resumed."""

from __future__ import annotations

import logging
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldseg.orchestration import home as _home  # noqa: F401  sets the environment before mlflow is imported

import mlflow  # isort: skip
from mlflow.entities import Metric, Param  # isort: skip
from mlflow.exceptions import MlflowException  # isort: skip

logger = logging.getLogger(__name__)
for _name in ("alembic", "mlflow.store.db.utils"):
    logging.getLogger(_name).setLevel(logging.WARNING)


def tracking_uri(home: Path) -> str:
    """MLFLOW_TRACKING_URI, else SQLite in the home."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"


def connect(home: Path) -> Tracker:
    """A tracker with its tables made; do this in the driver before workers log (making them twice at once fails)."""
    tracker = Tracker(tracking_uri(home), home)
    if not tracker.uri.startswith("http"):  # a server makes its own, and may be away
        tracker.client.search_experiments(max_results=1)
    return tracker


def without_password(text: str) -> str:
    """A text with the passwords of the addresses in it taken out: scheme://user:***@host."""
    return re.sub(r"(://[^:/@\s]*):[^@/\s]+@", r"\1:***@", text)


def logs(home: Path) -> Path:
    """Where the runs' logs lie until MLflow has them, and after."""
    return home / "log"


class Tracker:
    """Runs by name: asking again for the same name in the same experiment gives the same run."""

    def __init__(self, uri: str, home: Path) -> None:
        self.uri, self.home = uri, home
        self.client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)

    def experiment(self, name: str) -> str:
        """Id of an experiment, made if missing; its artifacts lie in the home."""
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        location = None if self.uri.startswith("http") else (self.home / "artifacts" / name).as_uri()
        return str(self.client.create_experiment(name, artifact_location=location))

    def run(
        self, experiment: str, name: str, *, parameters: Mapping[str, Any], tags: Mapping[str, str], parent: str = ""
    ) -> str:
        """Id of the run of that name, started or taken up again."""
        identity = self.experiment(experiment)
        found = self.client.search_runs([identity], filter_string=f"tags.`ldseg.name` = '{name}'", max_results=1)
        if found:
            self.client.update_run(found[0].info.run_id, status="RUNNING")
            return str(found[0].info.run_id)
        parents = {"mlflow.parentRunId": parent} if parent else {}
        run = self.client.create_run(
            identity, run_name=name, tags={"ldseg.name": name, **parents, **hardware(), **dict(tags)}
        )
        values = [Param(key, str(value)[:6000]) for key, value in parameters.items()]
        for start in range(0, len(values), 100):
            self.client.log_batch(run.info.run_id, params=values[start : start + 100])
        return str(run.info.run_id)

    def log(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log finite metrics; a tracker that is away costs a warning and never a training."""
        now = int(time.time() * 1000)
        points = [Metric(k, float(v), now, step) for k, v in metrics.items() if math.isfinite(float(v))]
        try:
            self.client.log_batch(run_id, metrics=points)
        except (MlflowException, OSError) as error:
            logger.warning("step %d could not be logged to MLflow: %s", step, error)

    def finish(self, run_id: str, status: str = "FINISHED", reason: str = "") -> None:
        """End a run as FINISHED, FAILED or KILLED; a reason becomes the tag "reason"."""
        if reason:
            self.client.set_tag(run_id, "reason", reason[:5000])
        self.client.set_terminated(run_id, status)


def hardware() -> dict[str, str]:
    """Tags that tell later where and from what a run came."""
    return {
        "ldseg.commit": commit(),
        "ldseg.host": platform.node(),
        "ldseg.machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def commit() -> str:
    """The code's commit, with "+changes" if the tree differs from it; "unknown" outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    try:
        revision = _git(root, "rev-parse", "--short=12", "HEAD")
        return revision + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
