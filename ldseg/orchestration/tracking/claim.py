"""One driver for one study or training: a lock that a killed process lets go of by itself."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import getpass
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection, NullPool, create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from ldseg.config import ConfigError
from ldseg.files import flock
from ldseg.orchestration.home import without_password

TRY = "SELECT pg_try_advisory_lock(hashtextextended(:what, 0))"
HELD = """
SELECT application_name AS who, date_trunc('second', backend_start AT TIME ZONE 'UTC')::text || '+00:00' AS since
FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND (classid::bigint << 32 | objid::bigint) = hashtextextended(:what, 0)
"""


@contextlib.contextmanager
def claimed(what: str, lock: Path, database: str = "") -> Iterator[None]:
    """Hold a study or a training while the block runs, against every process that sees the folder or the database.

    Args:
        what: "the study s", as a refusal calls it.
        lock: a file, made if missing, that says who holds it.
        database: address of one that all of them share, in whatever folder; only PostgreSQL can hold a lock for them.

    Raises:
        ConfigError: another process holds it; the message says which, and since when. Or the database is away.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held, open(lock, "a+b", buffering=0) as file:
        try:
            flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _refusal(what, lock.read_bytes()) from error
        if database.startswith("postgres"):
            held.enter_context(_connected(what, database))
        file.truncate(0)
        file.write(json.dumps(_holder()).encode())
        yield


def _connected(what: str, address: str) -> Connection:
    """An advisory lock, which ends with the connection; the file's stays, should the server be started anew."""
    url = make_url(address)
    url = url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url
    try:
        connection = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect()
        named = {"who": _holder()["who"][:63]}  # PostgreSQL's names are no longer
        connection.execute(text("SELECT set_config('application_name', :who, false)"), named)
        if not connection.execute(text(TRY), {"what": what}).scalar_one():
            held = connection.execute(text(HELD), {"what": what}).mappings().first()
            connection.close()
            raise _refusal(what, json.dumps(dict(held or {})).encode())
    except (SQLAlchemyError, ImportError) as error:
        reason = without_password(str(error.__cause__ or error).splitlines()[0])
        raise ConfigError(f"the studies' database {without_password(address)} can't be used: {reason}") from error
    return connection


def _holder() -> dict[str, str]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = str(os.getuid())
    now = datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="seconds")
    return {"who": f"{user}@{platform.node()}, process {os.getpid()}", "since": now}


def _refusal(what: str, content: bytes) -> ConfigError:
    try:
        holder = json.loads(content)
        by = f"by {holder['who']} since {holder['since']}"
    except (ValueError, KeyError):
        by = "by another process"  # which is about to say so
    return ConfigError(f"{what} is being worked on {by}; wait for its end, or take another --name")
