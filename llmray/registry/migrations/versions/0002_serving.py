"""Outputs say which adapter, request, documents, key and cost they had; projects have quotas."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in (
        sa.Column("adapter", sa.Text()),
        sa.Column("choice", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("request_id", sa.Text()),
        sa.Column("documents", sa.JSON(), nullable=False, server_default="[]"),
        sa.Column("project", sa.Text()),
        sa.Column("key_id", sa.Text()),
        sa.Column("cost", sa.Float()),
        sa.Column("cached_tokens", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("text_kept", sa.Boolean(), nullable=False, server_default=sa.true()),
        sa.Column("shadow_of", sa.Text()),
    ):
        op.add_column("outputs", column)
    op.create_index("ix_outputs_request_id", "outputs", ["request_id"])
    op.add_column("projects", sa.Column("requests_per_minute", sa.Integer()))
    op.add_column("projects", sa.Column("tokens_per_minute", sa.Integer()))
