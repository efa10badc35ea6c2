"""The log on standard error: a line of text or one JSON object a line, with times in UTC."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from pm.config import LogSection

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class JsonLines(logging.Formatter):
    """Values given as `extra` stand beside the message under their own names."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "from": record.name,
            "message": record.getMessage(),
        }
        entry |= {key: value for key, value in vars(record).items() if key not in _PLAIN}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


class TextLines(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def configure(section: LogSection) -> None:
    """Log to standard error as configured; the libraries' own routine lines are left out."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if section.format == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(section.level.upper())
    for noisy in ("apscheduler", "waitress", "alembic", "urllib3", "influxdb_client"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
