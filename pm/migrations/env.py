"""Alembic's environment: the migrations run inside the transaction that `pm.record_database` opened."""

from __future__ import annotations

from alembic import context

from pm.record_tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
