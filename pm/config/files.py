"""Reading the configuration: a file, the environment above it, and every violation in one message."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin

from pydantic import ValidationError

from pm.config.sections import Config, section_at, section_class
from pm.errors import ConfigError

ENVIRONMENT_PREFIX = "PM_"
DEFAULT_PATH = Path("pm.toml")


def load(path: Path | None = None, environment: Mapping[str, str] | None = None) -> Config:
    """Read `path` (or `pm.toml` when it exists, else defaults), then let `PM_SECTION__KEY` variables override.

    Relative paths in the file are taken from the file's folder, so that a service unit may start anywhere.
    Raises ConfigError with every violation: the key, its value, where it came from, and the mend.
    """
    environment = os.environ if environment is None else environment
    if path is not None and not path.is_file():
        raise ConfigError(f"{path}: no such file; write one with 'pm init' or name another with --config")
    path = path or (DEFAULT_PATH if DEFAULT_PATH.is_file() else None)
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not TOML: {error}") from None
    from_environment, violations = _overrides(environment)
    for (section, key), value in from_environment.items():
        table = values.setdefault(section, {})
        if isinstance(table, dict):
            table[key] = value
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        violations += [_violation(e, from_environment) for e in error.errors()]
        config = Config()
    if violations:
        place = path or "configuration"
        raise ConfigError("\n".join([f"{place}: {len(violations)} to mend:", *(f"  {v}" for v in violations)]))
    return _anchored(config, path.resolve().parent) if path is not None else config


def _overrides(environment: Mapping[str, str]) -> tuple[dict[tuple[str, str], Any], list[str]]:
    """Values of `PM_SECTION__KEY` variables; lists are written with commas."""
    found: dict[tuple[str, str], Any] = {}
    violations = []
    for name, text in environment.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or "__" not in name:
            continue
        section, _, key = name[len(ENVIRONMENT_PREFIX) :].lower().partition("__")
        if section not in Config.model_fields:
            violations.append(f"{name}: no section [{section}]{_nearest(section, Config.model_fields)}")
            continue
        field = section_class(section).model_fields.get(key)
        is_list = field is not None and get_origin(field.annotation) is tuple
        found[section, key] = [part.strip() for part in text.split(",") if part.strip()] if is_list else text
    return found, violations


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; do you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def _violation(error: Any, from_environment: Mapping[tuple[str, str], Any]) -> str:
    """One line for a person from one of pydantic's errors; the value of a secret is never shown."""
    loc = [str(part) for part in error["loc"]]
    key = ".".join(loc)
    variable = f"{ENVIRONMENT_PREFIX}{'__'.join(loc[:2]).upper()}"
    where = f" (from {variable})" if tuple(loc[:2]) in from_environment else ""
    if error["type"] == "extra_forbidden":
        if len(loc) == 1:
            return f"{key}: no such section{_nearest(key, Config.model_fields)}"
        return f"{key}: no such key{_nearest(loc[-1], section_at(loc[:-1]).model_fields)}{where}"
    secret = re.search(r"password|token|secret", loc[-1]) is not None
    value = "" if secret or isinstance(error["input"], dict) else f" = {error['input']!r}"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{key}{value}{where}: {message}"


def _anchored(config: Config, folder: Path) -> Config:
    """Relative paths made absolute from the configuration's folder."""
    url = config.records.url
    match = re.fullmatch(r"(sqlite(?:\+\w+)?:///)(?!/|:memory:)(.+)", url)
    return config.model_copy(
        update={
            "store": config.store.model_copy(update={"path": folder / config.store.path}),
            "models": config.models.model_copy(update={"dir": folder / config.models.dir}),
            "records": config.records.model_copy(update={"url": f"{match[1]}{folder / match[2]}"} if match else {}),
        }
    )
