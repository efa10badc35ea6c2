"""The tables of the service's own records. Times are microseconds since the epoch, UTC.

A change here needs a migration in `pm/migrations/versions/` and a new SCHEMA; a test holds the three together.
"""

from __future__ import annotations

import sqlalchemy as sa

SCHEMA = "0004"
"""Revision of the migrations that makes exactly these tables."""

metadata = sa.MetaData()

# SQLite gives out row numbers of its own only to a column declared INTEGER.
_Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

recording = sa.Table(
    "recording",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("interval", sa.Text, nullable=False),
    sa.Column("about", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("licence", sa.Text, nullable=False),
)

asset = sa.Table(
    "asset",
    metadata,
    sa.Column("number", _Number, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("static", sa.Text, nullable=False),  # JSON object
    sa.Column("recording", sa.Text, index=True),  # null: met in the feed
)

point = sa.Table(
    "point",
    metadata,
    sa.Column("recording", sa.Text, primary_key=True),  # empty: met in the feed
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("unit", sa.Text, nullable=False),
    sa.Column("low", sa.Double),
    sa.Column("high", sa.Double),
    sa.Column("description", sa.Text, nullable=False),
)

failure_mode = sa.Table(
    "failure_mode",
    metadata,
    sa.Column("recording", sa.Text, primary_key=True),  # empty: met in the feed
    sa.Column("code", sa.Text, primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("about", sa.Text, nullable=False),
)

assessment = sa.Table(
    "assessment",
    metadata,
    sa.Column("at_us", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("forecasts", sa.Integer, nullable=False),
    sa.Column("abstained", sa.Integer, nullable=False),
)

forecast = sa.Table(
    "forecast",
    metadata,
    sa.Column("asset", sa.Text, primary_key=True),
    sa.Column("at_us", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("abstained", sa.Text),  # the reason, and after ": " what is strange
    sa.Column("step_hours", sa.Double, nullable=False),
    sa.Column("hazard", sa.LargeBinary, nullable=False),  # little-endian float64, one a step
    sa.Column("modes", sa.Text, nullable=False),  # JSON object
    sa.Column("rul_hours", sa.Double),
    sa.Index("forecast_by_time", "at_us"),
)

policy_state = sa.Table(
    "policy_state",
    metadata,
    sa.Column("asset", sa.Text, primary_key=True),
    sa.Column("above", sa.Integer, nullable=False),
    sa.Column("below", sa.Integer, nullable=False),
    sa.Column("standing", sa.Boolean, nullable=False),
    sa.Column("renewed_us", sa.BigInteger),
)

alert = sa.Table(
    "alert",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("asset", sa.Text, nullable=False),
    sa.Column("failure_mode", sa.Text, nullable=False),
    sa.Column("raised_us", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("cause", sa.Text, nullable=False),
    sa.Column("probability", sa.Double, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("acknowledged_us", sa.BigInteger),
    sa.Column("acknowledged_by", sa.Text),
    sa.Column("cleared_us", sa.BigInteger),
    sa.Column("closed_us", sa.BigInteger),
    sa.Column("closed_because", sa.Text),
    sa.Column("shelved_until_us", sa.BigInteger),
    sa.Column("reasons", sa.Text, nullable=False),  # JSON: [[feature, contribution], ...], or with an explanation
    # Counts changes, so that of two who change the same alert at once only one does.
    sa.Column("revision", sa.Integer, nullable=False, server_default="0"),
    sa.Index("alert_by_asset", "asset", "raised_us"),
    sa.Index("alert_by_state", "state", "raised_us"),
)

alert_journal = sa.Table(
    "alert_journal",
    metadata,
    sa.Column("number", _Number, primary_key=True),
    sa.Column("alert", sa.Text, nullable=False, index=True),
    sa.Column("at_us", sa.BigInteger, nullable=False),
    sa.Column("cause", sa.Text, nullable=False),
    sa.Column("by", sa.Text),
    sa.Column("because", sa.Text),
    sa.Column("from_state", sa.Text),
    sa.Column("to_state", sa.Text, nullable=False),
)

model = sa.Table(
    "model",
    metadata,
    sa.Column("number", _Number, primary_key=True),
    sa.Column("version", sa.Text, nullable=False, unique=True),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.Column("trained_until_us", sa.BigInteger, nullable=False),
    sa.Column("recording", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("metrics", sa.Text, nullable=False),  # JSON object
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("stage", sa.Text, nullable=False),
)
sa.Index(
    "one_champion",
    model.c.stage,
    unique=True,
    sqlite_where=model.c.stage == "champion",
    postgresql_where=model.c.stage == "champion",
)

model_journal = sa.Table(
    "model_journal",
    metadata,
    sa.Column("number", _Number, primary_key=True),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("at_us", sa.BigInteger, nullable=False),
    sa.Column("from_stage", sa.Text),
    sa.Column("to_stage", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
)

account = sa.Table(
    "account",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("password", sa.Text, nullable=False),  # argon2id
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("disabled", sa.Boolean, nullable=False),
)

dead_letter = sa.Table(
    "dead_letter",
    metadata,
    sa.Column("number", _Number, primary_key=True),
    sa.Column("topic", sa.Text, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("received_us", sa.BigInteger, nullable=False),
    sa.Column("feed", sa.Text, nullable=False, server_default=""),
)

letter_journal = sa.Table(
    "letter_journal",
    metadata,
    sa.Column("number", _Number, primary_key=True),
    sa.Column("at_us", sa.BigInteger, nullable=False),
    sa.Column("by", sa.Text),  # null: on the command line
    sa.Column("what", sa.Text, nullable=False),
    sa.Column("letters", sa.Integer, nullable=False),
    sa.Column("gone", sa.Integer, nullable=False),
    sa.Column("about", sa.Text, nullable=False),
)

late = sa.Table(
    "late",
    metadata,
    sa.Column("asset", sa.Text, primary_key=True),
    sa.Column("first_us", sa.BigInteger, nullable=False),
    sa.Column("last_us", sa.BigInteger, nullable=False),
    sa.Column("came_us", sa.BigInteger, nullable=False),
    sa.Column("lasting", sa.Boolean, nullable=False),
    # Counts what came late, so that what comes while forecasts are revised is not forgotten with what was there before.
    sa.Column("stamp", sa.BigInteger, nullable=False),
)

revision = sa.Table(
    "revision",
    metadata,
    sa.Column("asset", sa.Text, primary_key=True),
    sa.Column("at_us", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("abstained", sa.Text),
    sa.Column("step_hours", sa.Double, nullable=False),
    sa.Column("hazard", sa.LargeBinary, nullable=False),  # as in forecast
    sa.Column("modes", sa.Text, nullable=False),
    sa.Column("rul_hours", sa.Double),
    sa.Column("first_us", sa.BigInteger, nullable=False),
    sa.Column("last_us", sa.BigInteger, nullable=False),
    sa.Column("came_us", sa.BigInteger, nullable=False),
    sa.Column("lasting", sa.Boolean, nullable=False),
    sa.Column("revised_us", sa.BigInteger, nullable=False),
    sa.Index("revision_by_time", "at_us"),
)

secret = sa.Table(
    "secret",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

silence = sa.Table(
    "silence",
    metadata,
    sa.Column("asset", sa.Text, primary_key=True),
    sa.Column("since_us", sa.BigInteger, nullable=False),
    sa.Column("because", sa.Text, nullable=False),
)

data_alert = sa.Table(
    "data_alert",
    metadata,
    sa.Column("number", _Number, primary_key=True),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("fault", sa.Text, nullable=False),
    sa.Column("raised_us", sa.BigInteger, nullable=False),
    sa.Column("last_us", sa.BigInteger, nullable=False),
    sa.Column("count", sa.BigInteger, nullable=False),
    sa.Column("about", sa.Text, nullable=False),
    sa.Column("closed_us", sa.BigInteger),
)
sa.Index(
    "one_open_data_alert",
    data_alert.c.source,
    data_alert.c.fault,
    unique=True,
    sqlite_where=data_alert.c.closed_us.is_(None),
    postgresql_where=data_alert.c.closed_us.is_(None),
)

tick = sa.Table(
    "tick",
    metadata,
    sa.Column("job", sa.Text, primary_key=True),
    sa.Column("at_us", sa.BigInteger, nullable=False),
)
