"""MLflow, with one run for one thing whatever crashes and is resumed."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import mlflow
from alembic.util import CommandError
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils as db
from sqlalchemy import URL, NullPool, create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from ldseg.config import ConfigError
from ldseg.files import locked, sync

BUILDING = ".new"  # behind the name of a database until its tables are whole

for _name in ("alembic", "mlflow.store.db.utils"):
    logging.getLogger(_name).setLevel(logging.WARNING)


def tracking_uri(home: Path) -> str:
    """MLFLOW_TRACKING_URI, else SQLite in the home."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"


def connect(home: Path) -> Tracker:
    """A tracker with its tables made; do this in the driver before workers log.

    Raises:
        ConfigError: MLflow's own database is broken and holds runs.
    """
    uri = tracking_uri(home)
    if uri.startswith("sqlite:"):  # a server makes its own, and may be away
        _make_whole(Path(make_url(uri).database or "").absolute())
    return Tracker(uri, home)


def _make_whole(path: Path) -> None:
    """See that MLflow's tables are all there: it takes seconds to make them, and can't go on where it was killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock")):
        if path.exists() and (problem := _problem(path)):
            _set_aside(path, problem)
        if path.exists():
            return
        new = path.with_name(path.name + BUILDING)
        for left in path.parent.glob(new.name + "*"):
            left.unlink()  # of a process that was killed
        if problem := _problem(new):
            raise ConfigError(f"MLflow's database {path} can't be made: {problem}")
        sync(new)
        new.rename(path)
        sync(path.parent)


def _problem(path: Path) -> str:
    """Why MLflow can't use a database in a file, "" if it can; tables that are missing are made."""
    # MLflow's own store would keep connections, also to a file that is renamed then
    engine = create_engine(URL.create("sqlite", database=str(path)), poolclass=NullPool)
    try:
        db._safe_initialize_tables(engine)
        db._verify_schema(engine)
    except (MlflowException, SQLAlchemyError, CommandError) as error:
        return str(getattr(error, "orig", error)).strip().splitlines()[0]
    return ""


def _set_aside(path: Path, problem: str) -> None:
    """Rename a database that can't be used and holds no run, with what belongs to it."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            runs = database.execute("SELECT count(*) FROM runs").fetchone()[0] if "runs" in tables else 0
    except sqlite3.Error as error:
        runs, problem = -1, str(error)  # nobody knows
    if runs:
        raise ConfigError(
            f"MLflow's database {path} can't be used ({problem}){f' and holds {runs} runs' if runs > 0 else ''}; "
            "put a copy of it back, or move it away to begin a new one"
        )
    aside = path.with_name(f"{path.name}.broken-{time.time_ns()}")
    path.rename(aside)
    print(f"MLflow's database {path} can't be used ({problem}) and holds no run; it is now {aside}", file=sys.stderr)


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
