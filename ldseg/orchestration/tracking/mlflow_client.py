"""MLflow, with one run for one thing whatever crashes and is resumed."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

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


def logs(home: Path) -> Path:
    """Where the runs' logs lie until MLflow has them, and after."""
    return home / "log"


class Tracker:
    """One MLflow: its address, its client, and the home whose runs the shipper tells it."""

    def __init__(self, uri: str, home: Path) -> None:
        self.uri, self.home = uri, home
        self.client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)

    def experiment(self, name: str) -> str:
        """Id of an experiment, made if missing; its artifacts lie in the home."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            location = None if self.uri.startswith("http") else (self.home / "artifacts" / name).as_uri()
            try:
                return str(self.client.create_experiment(name, artifact_location=location))
            except MlflowException:
                found = self.client.get_experiment_by_name(name)  # another process may have just made it
                if found is None:
                    raise
        return str(found.experiment_id)
