"""A PostgreSQL server of the tests' own; a plugin: it brings the fixture `postgres`."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import create_engine

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
