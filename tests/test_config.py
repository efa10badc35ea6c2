"""The configuration: every violation at once, environment over file, secrets out of sight."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from pm import config
from pm.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "pm.toml"
    path.write_text(text)
    return path


def test_the_sample_is_valid_and_says_the_defaults(tmp_path: Path) -> None:
    loaded = config.load(write(tmp_path, config.sample()), {})
    defaults = config.Config()
    for section in config.Config.model_fields:
        if section not in {"store", "models", "records"}:  # their relative paths are anchored at the file's folder
            assert getattr(loaded, section) == getattr(defaults, section)
    assert loaded.store.path == tmp_path / "data/readings.db"
    assert loaded.records.url == f"sqlite:///{tmp_path}/data/records.db"


def test_the_sample_documents_every_key() -> None:
    lines = config.sample().splitlines()
    for number, line in enumerate(lines):
        if " = " in line and not line.startswith("# "):
            assert lines[number - 1].startswith("# "), f"{line} has no comment"


def test_every_violation_is_listed_with_key_value_and_mend(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        [stor]
        [store]
        kind = "mongo"
        kid = 2
        [mqtt]
        port = 99999
        [train]
        context = 10
        [retrain]
        cron = "often"
        """,
    )
    with pytest.raises(ConfigError) as caught:
        config.load(path, {"PM_PLANT__INTERVAL": "3x", "PM_FOO__X": "1"})
    text = str(caught.value)
    assert text.startswith(f"{path}: 8 to mend:")
    for part in (
        "stor: no such section; do you mean store?",
        "store.kind = 'mongo'",
        "store.kid: no such key; do you mean kind?",
        "mqtt.port = 99999",
        "context 10 is not a whole number of patches",
        "retrain.cron = 'often'",
        "plant.interval = '3x' (from PM_PLANT__INTERVAL)",
        "PM_FOO__X: no section [foo]",
    ):
        assert part in text


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, '[store]\nkind = "embedded"\n[mqtt]\nport = 1\n')
    loaded = config.load(
        path,
        {"PM_STORE__KIND": "influxdb", "PM_MQTT__PORT": "1884", "PM_MQTT__READINGS": "a/{asset}/r, b/{asset}/{point}"},
    )
    assert loaded.store.kind == "influxdb"
    assert loaded.mqtt.port == 1884
    assert loaded.mqtt.readings == ("a/{asset}/r", "b/{asset}/{point}")


def test_a_secret_comes_from_a_file_and_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("hunter2\n")
    loaded = config.load(write(tmp_path, f'[mqtt]\npassword_file = "{tmp_path}/pw"\n'), {})
    assert loaded.mqtt.password.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(loaded)
    with pytest.raises(ConfigError) as caught:
        config.load(write(tmp_path, "[mqtt]\npassword = 4711\n"), {})
    assert "4711" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"password_file .*nowhere cannot be read"):
        config.load(write(tmp_path, '[mqtt]\npassword_file = "/nowhere"\n'), {})


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("10m", 600), ("1h", 3600), ("7d", 604800)])
def test_durations_read_back_as_written(text: str, value: int) -> None:
    assert config.duration_text(timedelta(seconds=value)) == ("90s" if text == "90s" else text)
    loaded = config.ClockSection.model_validate({"grace": text})
    assert loaded.grace.total_seconds() == value


def test_not_toml_and_no_file_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not TOML"):
        config.load(write(tmp_path, "kind = = 1"), {})
    with pytest.raises(ConfigError, match="write one with 'pm init'"):
        config.load(tmp_path / "absent.toml", {})


def test_further_brokers_have_a_table_each(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    text = f"""
        [mqtt]
        host = "one.example"
        [[mqtt.more]]
        host = "two.example"
        readings = ["line/{{asset}}/{{point}}"]
        password_file = "{tmp_path}/password"
        """
    loaded = config.load(write(tmp_path, text), {})
    (more,) = loaded.mqtt.more
    assert (more.host, more.readings, more.port) == ("two.example", ("line/{asset}/{point}",), 1883)
    assert more.password.get_secret_value() == "secret"
    for tables, mend in (
        ('hots = "x"', "mqtt.more.0.hots: no such key; do you mean host?"),
        ("port = 1884", "more.0 names no host"),
        ('host = "one.example"', "client_id 'pm-ingest' stands twice for one.example:1883; give each its own"),
        ('host = "x"\nshare = "a/b"', "share 'a/b' has / + or #"),
        ('host = "x"\nembedded = "auto"', "mqtt.more.0.embedded: no such key"),
    ):
        with pytest.raises(ConfigError) as caught:
            config.load(write(tmp_path, f'[mqtt]\nhost = "one.example"\n[[mqtt.more]]\n{tables}\n'), {})
        assert mend in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"), [('"forever"', None), ('"400d"', timedelta(days=400)), ('"90d"', timedelta(days=90))]
)
def test_readings_are_kept_for_a_time_or_for_ever(tmp_path: Path, text: str, value: timedelta | None) -> None:
    assert config.load(write(tmp_path, f"[store]\nretention = {text}"), {}).store.retention == value
    assert 'retention = "forever"' in config.sample()
