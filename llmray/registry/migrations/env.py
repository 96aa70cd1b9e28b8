"""Alembic's entry: run the migrations on the connection that `llmray.registry.migrate` hands over.

The caller holds the lock and the transaction, so nothing here begins or commits.
"""

from alembic import context

from llmray.registry.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
context.run_migrations()
