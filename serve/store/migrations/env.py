"""Alembic's entry: it works on the connection, and in the transaction, of the job store that calls it."""

from alembic import context

from serve.store.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
with context.begin_transaction():
    context.run_migrations()
