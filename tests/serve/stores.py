"""Job stores on real databases: SQLite in a file, PostgreSQL in a server of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from ldseg.adaptive import SamplePlan
from serve.store import JobStore, NewCohort, sqlite_url

LEASE_S = 60.0  # never runs out in a test that doesn't want it to
BUNDLED = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


class Server:
    """A PostgreSQL that listens on a socket in its own folder."""

    def __init__(self) -> None:
        found = shutil.which("initdb")
        self.programs = Path(found).parent if found else BUNDLED[-1]
        self.folder = Path(tempfile.mkdtemp(prefix="ldseg-postgres-"))
        self._number = count()
        self._as_user: list[str] = []
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            shutil.chown(self.folder, "postgres", "postgres")
            self._as_user = ["runuser", "-u", "postgres", "--"]
        self._run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-instructions")
        self.start()

    def start(self) -> None:
        """Without fsync, which only a crash of the machine would show."""
        options = f"-c listen_addresses= -c fsync=off -k {self.folder}"
        self._run("pg_ctl", "start", "--wait", "--log", str(self.folder / "log"), "-o", options)

    def stop(self, how: str = "fast") -> None:
        """`how` is fast or immediate; the latter is as a crash."""
        self._run("pg_ctl", "stop", "--wait", "--mode", how)

    def _run(self, program: str, *options: str) -> None:
        command = [*self._as_user, str(self.programs / program), *options, "--pgdata", str(self.folder / "data")]
        with (self.folder / "programs.log").open("ab") as log:  # a pipe would be held open by the server
            done = subprocess.run(command, cwd="/", stdout=log, stderr=log, timeout=120)
        assert done.returncode == 0, (self.folder / "programs.log").read_text()[-2000:]

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://postgres@/{database}?host={self.folder}"

    def new(self) -> str:
        """The address of a new, empty database."""
        name = f"jobs_{next(self._number)}"
        engine = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        engine.dispose()
        return self.url(name)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    if not shutil.which("initdb") and not BUNDLED:
        pytest.skip("PostgreSQL is not installed: there is no initdb")
    server = Server()
    yield server
    server.stop("immediate")
    shutil.rmtree(server.folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "jobs.db")
    return str(request.getfixturevalue("postgres").new())


@pytest.fixture
def store(url: str) -> Iterator[JobStore]:
    opened = JobStore(url)
    yield opened
    opened.close()


def add(store: JobStore, *names: str, owner: str = "me", upload: bool = False, priority: int = 0) -> str:
    """A cohort of cases with these names; its id."""
    cohort = NewCohort(owner=owner, plan=SamplePlan.fixed(2), upload=upload, priority=priority)
    return store.add(cohort, [(name, f"/{name}") for name in names])[0]


def names(prefix: str, number: int) -> list[str]:
    return [f"{prefix}{k:05d}" for k in range(number)]


def at_once(number: int, task: object) -> list[object]:
    """Results of a function of k called by so many threads at the same instant; an exception is a result."""
    barrier, results = threading.Barrier(number), [None] * number

    def run(k: int) -> None:
        barrier.wait()
        try:
            results[k] = task(k)
        except Exception as error:
            results[k] = error

    threads = [threading.Thread(target=run, args=(k,)) for k in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
