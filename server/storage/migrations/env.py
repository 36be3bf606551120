"""What Alembic runs: the revisions, on the connection that it was handed, in the transaction that is already open there."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
