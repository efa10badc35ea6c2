"""Every table, as the first version of pm had them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _number() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "account",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("password", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "alert",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("asset", sa.Text(), nullable=False),
        sa.Column("failure_mode", sa.Text(), nullable=False),
        sa.Column("raised_us", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("probability", sa.Double(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("acknowledged_us", sa.BigInteger(), nullable=True),
        sa.Column("acknowledged_by", sa.Text(), nullable=True),
        sa.Column("cleared_us", sa.BigInteger(), nullable=True),
        sa.Column("closed_us", sa.BigInteger(), nullable=True),
        sa.Column("closed_because", sa.Text(), nullable=True),
        sa.Column("shelved_until_us", sa.BigInteger(), nullable=True),
        sa.Column("reasons", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("alert_by_asset", "alert", ["asset", "raised_us"], unique=False)
    op.create_index("alert_by_state", "alert", ["state", "raised_us"], unique=False)
    op.create_table(
        "alert_journal",
        sa.Column("number", _number(), nullable=False),
        sa.Column("alert", sa.Text(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=True),
        sa.Column("because", sa.Text(), nullable=True),
        sa.Column("from_state", sa.Text(), nullable=True),
        sa.Column("to_state", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_index("ix_alert_journal_alert", "alert_journal", ["alert"], unique=False)
    op.create_table(
        "assessment",
        sa.Column("at_us", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("forecasts", sa.Integer(), nullable=False),
        sa.Column("abstained", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("at_us"),
    )
    op.create_table(
        "asset",
        sa.Column("number", _number(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("static", sa.Text(), nullable=False),
        sa.Column("recording", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("name"),
    )
    op.create_index("ix_asset_recording", "asset", ["recording"], unique=False)
    op.create_table(
        "dead_letter",
        sa.Column("number", _number(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("received_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_table(
        "failure_mode",
        sa.Column("recording", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("about", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("recording", "code"),
    )
    op.create_table(
        "forecast",
        sa.Column("asset", sa.Text(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("abstained", sa.Text(), nullable=True),
        sa.Column("step_hours", sa.Double(), nullable=False),
        sa.Column("hazard", sa.LargeBinary(), nullable=False),
        sa.Column("modes", sa.Text(), nullable=False),
        sa.Column("rul_hours", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("asset", "at_us"),
    )
    op.create_index("forecast_by_time", "forecast", ["at_us"], unique=False)
    op.create_table(
        "model",
        sa.Column("number", _number(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("trained_until_us", sa.BigInteger(), nullable=False),
        sa.Column("recording", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("metrics", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("version"),
    )
    op.create_index(
        "one_champion",
        "model",
        ["stage"],
        unique=True,
        sqlite_where=sa.text("stage = 'champion'"),
        postgresql_where=sa.text("stage = 'champion'"),
    )
    op.create_table(
        "model_journal",
        sa.Column("number", _number(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("from_stage", sa.Text(), nullable=True),
        sa.Column("to_stage", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_table(
        "point",
        sa.Column("recording", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("low", sa.Double(), nullable=True),
        sa.Column("high", sa.Double(), nullable=True),
        sa.Column("description", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("recording", "name"),
    )
    op.create_table(
        "policy_state",
        sa.Column("asset", sa.Text(), nullable=False),
        sa.Column("above", sa.Integer(), nullable=False),
        sa.Column("below", sa.Integer(), nullable=False),
        sa.Column("standing", sa.Boolean(), nullable=False),
        sa.Column("renewed_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("asset"),
    )
    op.create_table(
        "recording",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("interval", sa.Text(), nullable=False),
        sa.Column("about", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("licence", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "secret",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "tick",
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job"),
    )


def downgrade() -> None:
    for table in (
        "account",
        "alert",
        "alert_journal",
        "assessment",
        "asset",
        "dead_letter",
        "failure_mode",
        "forecast",
        "model",
        "model_journal",
        "point",
        "policy_state",
        "recording",
        "secret",
        "tick",
    ):
        op.drop_table(table)
