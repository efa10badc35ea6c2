"""Late readings, the forecasts revised for them; where a dead letter came from, and who did what with dead letters."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "late",
        sa.Column("asset", sa.Text(), nullable=False),
        sa.Column("first_us", sa.BigInteger(), nullable=False),
        sa.Column("last_us", sa.BigInteger(), nullable=False),
        sa.Column("came_us", sa.BigInteger(), nullable=False),
        sa.Column("lasting", sa.Boolean(), nullable=False),
        sa.Column("stamp", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("asset"),
    )
    op.create_table(
        "revision",
        sa.Column("asset", sa.Text(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("abstained", sa.Text(), nullable=True),
        sa.Column("step_hours", sa.Double(), nullable=False),
        sa.Column("hazard", sa.LargeBinary(), nullable=False),
        sa.Column("modes", sa.Text(), nullable=False),
        sa.Column("rul_hours", sa.Double(), nullable=True),
        sa.Column("first_us", sa.BigInteger(), nullable=False),
        sa.Column("last_us", sa.BigInteger(), nullable=False),
        sa.Column("came_us", sa.BigInteger(), nullable=False),
        sa.Column("lasting", sa.Boolean(), nullable=False),
        sa.Column("revised_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("asset", "at_us"),
    )
    op.create_index("revision_by_time", "revision", ["at_us"])
    op.create_table(
        "letter_journal",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("by", sa.Text(), nullable=True),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("letters", sa.Integer(), nullable=False),
        sa.Column("gone", sa.Integer(), nullable=False),
        sa.Column("about", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    op.add_column("dead_letter", sa.Column("feed", sa.Text(), nullable=False, server_default=""))
