"""Labels may be split by weight, deleted and protected: an alias event may name several digests, or none."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("aliases", sa.Column("weights", sa.JSON()))
    with op.batch_alter_table("alias_events") as events:  # SQLite makes the table anew, without its triggers
        events.alter_column("digest", existing_type=sa.Text(), nullable=True)
        events.add_column(sa.Column("weights", sa.JSON()))
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER alias_events_no_{verb.lower()} BEFORE {verb} ON alias_events "
                "BEGIN SELECT RAISE(ABORT, 'alias events are append-only'); END"
            )
