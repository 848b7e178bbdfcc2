"""Transactions on SQLite and PostgreSQL, and what it means when they fail."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, Float, cast, create_engine, event, func, make_url, select
from sqlalchemy.exc import ArgumentError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from serve.store.records import StoreAway, StoreError

ADDRESSES = "use sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"
WAIT_S = 30  # for a lock, at most
SQLITE_PRAGMAS = (f"busy_timeout={WAIT_S * 1000}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")
POSTGRESQL_SESSION = (
    f"SET lock_timeout = '{WAIT_S}s'",
    f"SET idle_in_transaction_session_timeout = '{WAIT_S}s'",  # a frozen process must not hold its locks for ever
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
)
# An end of the connection that died without a word is noticed after about ten seconds.
POSTGRESQL_CONNECT = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
POST_LOCK, MIGRATION_LOCK = 0x6C64_7367_01, 0x6C64_7367_02  # names of advisory locks


def sqlite_url(path: Path) -> str:
    """The address of a database in a file."""
    return URL.create("sqlite", database=str(path)).render_as_string()


class Database:
    """Opens transactions; a commit is on the disk when it returns.

    Args:
        url: sqlite:///PATH or postgresql+psycopg://...

    Raises:
        StoreError: the address is of no database that is known here.
    """

    def __init__(self, url: str | URL) -> None:
        try:
            self.url = make_url(url)
        except ArgumentError as error:
            raise StoreError(f"the job store's address is no URL; {ADDRESSES}") from error
        if self.url.drivername == "postgresql":
            self.url = self.url.set(drivername="postgresql+psycopg")
        self.shown = self.url.render_as_string(hide_password=True)
        self.sqlite = self.url.drivername == "sqlite"
        self._file: tuple[Path, tuple[int, int] | None] | None = None  # of SQLite, and its device and inode
        # Writers of one process queue here: SQLite's own waiting is a poll that may starve one of them.
        self._writing = threading.Lock()
        if self.sqlite and self.url.database and self.url.database != ":memory:":
            self._engine = self._sqlite(Path(self.url.database))
        elif self.url.drivername == "postgresql+psycopg":
            self._engine = self._postgresql()
        else:
            raise StoreError(f"the job store can't be {self.shown}; {ADDRESSES}")

    def _sqlite(self, path: Path) -> Engine:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.mknod(path, 0o600)  # never opened beside SQLite: closing would give up the locks that this process has
        for file in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
            with suppress(FileNotFoundError, PermissionError):  # the latter where it is somebody else's
                file.chmod(0o600)
        self._file = path, _identity(path)
        address = f"file:{quote(str(path.resolve()))}?mode=rw"  # one that is gone is not made anew

        def connect() -> sqlite3.Connection:
            return sqlite3.connect(address, WAIT_S, uri=True, check_same_thread=False)

        engine = create_engine(
            self.url, creator=connect, isolation_level="AUTOCOMMIT", pool_size=8, max_overflow=56
        )  # fmt: skip
        _at_connect(engine, tuple(f"PRAGMA {pragma}" for pragma in SQLITE_PRAGMAS))
        return engine

    def _postgresql(self) -> Engine:
        arguments = {key: value for key, value in POSTGRESQL_CONNECT.items() if key not in self.url.query}
        engine = create_engine(self.url, connect_args=arguments, pool_pre_ping=True, pool_size=4, max_overflow=12)
        _at_connect(engine, POSTGRESQL_SESSION)
        return engine

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes; on SQLite it has the write lock from its start, so it can't fail half-way.

        Raises:
            StoreAway: the database does not answer; whether a commit was heard is then unknown.
        """
        if not self.sqlite:
            with self._told(), self._engine.begin() as connection:
                yield connection
            return
        if not self._writing.acquire(timeout=WAIT_S):
            raise StoreAway(f"the job store {self.shown} is busy; try again in a moment")
        try:
            with self._told(), self._engine.connect() as connection:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                yield connection
                connection.exec_driver_sql("COMMIT")  # without it, closing the connection rolls back
            self.check_file()  # what was written to a file without a name is lost
        finally:
            self._writing.release()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database and waits for no writer.

        Raises:
            StoreAway: the database does not answer.
        """
        with self._told(), self._engine.connect() as connection:
            if self.sqlite:
                connection.exec_driver_sql("BEGIN")
            else:
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            yield connection

    @property
    def folder(self) -> Path | None:
        """Where SQLite's file lies; None of a server."""
        return None if self._file is None else self._file[0].parent

    def check_file(self) -> None:
        """See whether the database is the file that it was; connections would go on writing to a removed one.

        Raises:
            StoreAway: it was removed, or another one was put in its place.
        """
        if self._file is not None and _identity(self._file[0]) != self._file[1]:
            text = f"the job store {self.shown} was removed or replaced while the service ran"
            raise StoreAway(f"{text}; put it back, or start the service again with the one that is there")

    @contextmanager
    def _told(self) -> Iterator[None]:
        self.check_file()
        try:
            yield
        except (OperationalError, InterfaceError, InternalError, PoolTimeout) as error:
            lines = str(getattr(error, "orig", error)).strip().splitlines() or [type(error).__name__]
            raise StoreAway(f"the job store {self.shown} does not answer ({lines[0][:200]}); try again") from error

    def now(self, connection: Connection) -> float:
        """Seconds since 1970 by the clock that decides about leases: PostgreSQL's own, or that of this machine."""
        if self.sqlite:
            return time.time()
        clock = select(cast(func.date_part("epoch", func.clock_timestamp()), Float(53)))
        return float(connection.execute(clock).scalar_one())

    def alone(self, connection: Connection, lock: int) -> None:
        """Wait until no other transaction holds this lock; SQLite's writers are alone anyway."""
        if not self.sqlite:
            connection.execute(select(func.pg_advisory_xact_lock(lock)))

    def close(self) -> None:
        """Let go of every connection."""
        self._engine.dispose()


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _at_connect(engine: Engine, statements: tuple[str, ...]) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        for statement in statements:
            _execute_when_unlocked(cursor, statement)
        cursor.close()
        connection.commit()


def _execute_when_unlocked(cursor: Any, statement: str) -> None:
    """SQLite does not wait for whoever else turns a new database to WAL at the same instant: it says "locked"."""
    until = time.monotonic() + WAIT_S
    while True:
        try:
            cursor.execute(statement)
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.02)
