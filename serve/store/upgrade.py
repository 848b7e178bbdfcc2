"""The tables are made and brought up to date at start, by one process at a time."""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from serve.store.database import MIGRATION_LOCK, Database
from serve.store.records import SchemaError
from serve.store.schema import VERSION_TABLE

_IN_THIS_PROCESS = threading.Lock()  # Alembic keeps what it works on in a module
MIGRATIONS = Path(__file__).resolve().parent / "migrations"


def upgrade(database: Database) -> None:
    """Bring the tables up to date; those of version 0.1 are taken over with their jobs.

    Raises:
        SchemaError: they were made by a later version.
        StoreAway: the database does not answer.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    with database.read() as connection:
        if _revision(connection) == scripts.get_current_head():
            return
    with database.write() as connection:
        database.alone(connection, MIGRATION_LOCK)
        revision = _revision(connection)
        if revision is not None and revision not in {script.revision for script in scripts.walk_revisions()}:
            text = f"the job store {database.shown} has the tables of a later version ({revision})"
            raise SchemaError(f"{text}; start that version, or name another store")
        config.attributes["connection"] = connection
        with _IN_THIS_PROCESS:
            command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()
