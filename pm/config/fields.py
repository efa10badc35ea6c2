"""What a configuration's sections are made of: durations, schedules, time zones, and secrets that stand in files."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    model_validator,
)

from pm.domain import parse_interval


def _duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str):
        raise ValueError('is not a duration; write a number and a unit in quotes, like "90s", "10m", "1h" or "7d"')
    return parse_interval(value)


def duration_text(value: timedelta) -> str:
    """The shortest text that `parse_interval` reads back as this duration (whole seconds)."""
    seconds = int(value.total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _lasting(value: object) -> timedelta | None:
    return None if value is None or value == "forever" else _duration(value)


def _lasting_text(value: timedelta | None) -> str:
    return "forever" if value is None else duration_text(value)


def _cron(value: str) -> str:
    from apscheduler.triggers.cron import CronTrigger

    try:
        CronTrigger.from_crontab(value)
    except ValueError as error:
        raise ValueError(f"is not a cron line ({error}); write five fields, like '0 3 * * sun'") from None
    return value


def _timezone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError):
        raise ValueError("is not a time zone; write a name like UTC or Europe/Berlin") from None
    return value


Duration = Annotated[timedelta, BeforeValidator(_duration), PlainSerializer(duration_text)]
Lasting = Annotated[timedelta | None, BeforeValidator(_lasting), PlainSerializer(_lasting_text)]
"""A duration, or "forever"."""
Cron = Annotated[str, AfterValidator(_cron)]
TimeZone = Annotated[str, AfterValidator(_timezone)]
TcpPort = Annotated[int, Field(ge=0, le=65535)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=False)

    @model_validator(mode="before")
    @classmethod
    def _read_secret_files(cls, values: Any) -> Any:
        """A secret `x` may be given as `x_file`, so that it stands in no configuration and no environment."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for name, field in cls.model_fields.items():
            path = values.get(f"{name}_file")
            if field.annotation is SecretStr and path:
                try:
                    values[name] = Path(path).read_text(encoding="utf-8").strip()
                except OSError as error:
                    raise ValueError(
                        f"{name}_file {path} cannot be read ({error.strerror}); mend path or rights"
                    ) from None
        return values
