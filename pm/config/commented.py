"""The commented `pm.toml` that `pm init` writes, out of the fields' own docstrings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import SecretStr

from pm.config.sections import Config, section_class, table_class


def sample() -> str:
    """A commented `pm.toml` with every key at its default: what `pm init` writes."""
    return "\n".join(_sample_lines()) + "\n"


def _sample_lines() -> Iterator[str]:
    yield "# pm: predictive maintenance. Every key stands at its default; change what you need, delete the rest."
    yield "# PM_SECTION__KEY in the environment overrides a key here: PM_STORE__KIND=influxdb."
    for section in Config.model_fields:
        cls = section_class(section)
        yield ""
        yield f"# {(cls.__doc__ or '').strip()}"
        yield f"[{section}]"
        defaults = cls().model_dump(mode="json")
        tables = [name for name, field in cls.model_fields.items() if table_class(field.annotation)]
        for name, field in cls.model_fields.items():
            if name in tables:
                continue
            yield f"# {_on_one_line(field.description)}{_choices(field.annotation)}"
            value = "" if field.annotation is SecretStr else defaults[name]
            yield f"{'# ' if field.annotation is SecretStr else ''}{name} = {_toml(value)}"
        for name in tables:
            yield f"# {_on_one_line(cls.model_fields[name].description)}"
            yield f"# [[{section}.{name}]]"


def _on_one_line(description: str | None) -> str:
    return " ".join((description or "").split())


def _choices(annotation: Any) -> str:
    return f" One of: {', '.join(get_args(annotation))}." if get_origin(annotation) is Literal else ""


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return str(value)
