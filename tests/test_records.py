"""What the records keep of the plant, its models, its users and strange messages."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest

from pm.domain import (
    Asset,
    FailureMode,
    Point,
    Silence,
)
from pm.errors import RecordsError
from pm.ports import Reject
from pm.records import ModelRow, Records, Role, Stage
from tests.record_databases import HOUR, T0, Open, another, described, records, server

__all__ = ["another", "records", "server"]


# The register


def test_a_recording_comes_back_as_it_was(records: Records) -> None:
    put = described()
    records.put_recording(put)
    found = records.recording("plant-a")
    assert replace(found, history=put.history) == put
    assert found.history.assets == put.history.assets
    assert [type(v) for v in found.history.assets[0].static.values()] == [str, int, float]
    assert list(found.history.assets[0].static) == ["zone", "age", "kw"]
    assert (found.history.points, found.history.failure_modes) == (put.history.points, put.history.failure_modes)
    assert found.history.interval == HOUR
    assert list(found.history.readings.columns) == ["time", "asset", "vibration", "flow"]
    assert str(found.history.readings["time"].dtype) == "datetime64[us, UTC]"
    assert list(found.history.events.columns) == ["time", "asset", "kind", "code"]


def test_putting_a_recording_again_replaces_it(records: Records) -> None:
    records.put_recording(described())
    records.put_recording(replace(described(assets=("pump-9",)), about="anew"))
    assert records.recordings() == ["plant-a"]
    assert records.recording("plant-a").about == "anew"
    assert [asset.name for asset in records.assets()] == ["pump-9"]


def test_an_asset_has_one_recording(records: Records) -> None:
    records.put_recording(described())
    with pytest.raises(RecordsError, match=r"plant-b: asset pump-1 is known from recording plant-a"):
        records.put_recording(described("plant-b", ("pump-7", "pump-1")))
    assert records.recordings() == ["plant-a"]
    assert [asset.name for asset in records.assets()] == ["pump-2", "pump-1"]


def test_a_recording_is_forgotten_whole(records: Records) -> None:
    records.put_recording(described())
    records.put_recording(described("plant-b", ("fan-1",)))
    records.forget_recording("plant-a")
    records.forget_recording("never heard of")
    assert records.recordings() == ["plant-b"]
    assert [asset.name for asset in records.assets()] == ["fan-1"]
    assert [point.name for point in records.points()] == ["vibration", "flow"]
    with pytest.raises(RecordsError, match="no recording 'plant-a'"):
        records.recording("plant-a")


def test_points_and_modes_of_several_recordings_are_told_once(records: Records) -> None:
    records.put_recording(described())
    records.put_recording(described("plant-b", ("fan-1",)))
    assert [point.name for point in records.points()] == ["vibration", "flow"]
    assert [mode.code for mode in records.failure_modes()] == ["seal", "bearing"]


def test_what_the_feed_brings_is_registered_once_and_described_later(records: Records) -> None:
    records.ensure_assets(["pump-1", "fan-1", "pump-1"])
    records.ensure_assets(["fan-1", "fan-2"])
    records.ensure_points(["flow", "heat", "heat"])
    records.ensure_points(["heat", "load"])
    records.ensure_failure_modes(["seal", "seal"])
    records.ensure_failure_modes([])
    assert records.assets() == (Asset("pump-1", "unknown"), Asset("fan-1", "unknown"), Asset("fan-2", "unknown"))
    assert [point.name for point in records.points()] == ["flow", "heat", "load"]
    assert records.failure_modes() == (FailureMode("seal"),)
    records.put_recording(described())
    assert [asset.name for asset in records.assets()] == ["fan-1", "fan-2", "pump-2", "pump-1"]
    assert {asset.name: asset.model for asset in records.assets()}["pump-1"] == "P-100"


def test_who_is_silent_is_kept_until_heard_again(records: Records, another: Open) -> None:
    records.note_source([Silence("a", 5, "why"), Silence("b", 6, "why"), Silence("c", None, "")], [])
    records.note_source([Silence("a", 7, "another"), Silence("b", None, "")], [])
    assert another().silences() == {"a": Silence("a", 7, "another")}
    records.note_source([Silence("a", 9, "gone"), Silence("a", None, "")], [])  # the latest word stands
    assert records.silences() == {}


def test_units_that_the_feed_tells_describe_what_nobody_described(records: Records) -> None:
    records.put_recording(described())
    known = records.points()[0]
    records.ensure_points(["bare"])
    records.note_source([], [Point(known.name, "furlong"), Point("bare", "bar"), Point("new", "K"), Point("new", "C")])
    records.note_source([], [Point("bare", "psi")])
    units = {point.name: point.unit for point in records.points()}
    assert units[known.name] == known.unit and units["bare"] == "bar" and units["new"] == "K"


def test_thousands_of_assets(records: Records) -> None:
    names = tuple(f"asset-{number:05}" for number in range(3000))
    records.put_recording(described(assets=names))
    records.put_recording(described(assets=names))
    assert tuple(asset.name for asset in records.assets()) == names


# Models


def model(version: str) -> ModelRow:
    return ModelRow(
        version=version,
        path=f"/models/{version}",
        created_at=T0,
        trained_until=T0 - 24 * HOUR,
        recording="plant-a",
        fingerprint="f" * 64,
        metrics={"pr_auc": {"72h": 0.61}, "note": "ä"},
    )


def stages(records: Records) -> dict[str, Stage]:
    return {row.version: row.stage for row in records.models()}


def test_models_are_challengers_until_promoted(records: Records) -> None:
    records.add_model(model("v1"))
    records.add_model(model("v2"))
    records.add_model(model("v1"))
    assert [row.version for row in records.models()] == ["v2", "v1"]
    assert records.models()[1] == model("v1")
    assert records.champion() is None
    records.promote("v1", at=T0, why="the first")
    records.promote("v2", at=T0 + HOUR, why="log score 0.12 better")
    records.promote("v2", at=T0 + 2 * HOUR, why="again")
    champion = records.champion()
    assert champion is not None
    assert (champion.version, champion.verdict) == ("v2", "log score 0.12 better")
    assert stages(records) == {"v1": Stage.RETIRED, "v2": Stage.CHAMPION}
    assert [(e.at, e.from_stage, e.to_stage, e.why) for e in records.model_journal("v1")] == [
        (T0, None, Stage.CHALLENGER, "trained"),
        (T0, Stage.CHALLENGER, Stage.CHAMPION, "the first"),
        (T0 + HOUR, Stage.CHAMPION, Stage.RETIRED, "v2 took its place"),
    ]
    assert len(records.model_journal()) == 5


def test_a_challenger_kept_out_keeps_its_verdict(records: Records) -> None:
    records.add_model(model("v1"))
    records.set_verdict("v1", "kept out: 3 failures in the window, 5 needed")
    assert records.models()[0].verdict == "kept out: 3 failures in the window, 5 needed"
    assert records.champion() is None


def test_rolling_back_goes_back_and_not_to_and_fro(records: Records) -> None:
    for version in ("v1", "v2", "v3"):
        records.add_model(model(version))
        records.promote(version, at=T0, why="better")
    assert records.rollback(at=T0 + HOUR).version == "v2"
    assert stages(records) == {"v1": Stage.RETIRED, "v2": Stage.CHAMPION, "v3": Stage.RETIRED}
    assert records.rollback(at=T0 + 2 * HOUR).version == "v1"
    with pytest.raises(RecordsError, match="no champion before this one"):
        records.rollback(at=T0 + 3 * HOUR)
    assert stages(records)["v1"] is Stage.CHAMPION
    records.promote("v3", at=T0 + 4 * HOUR, why="after all")
    assert records.rollback(at=T0 + 5 * HOUR).version == "v1"


def test_models_that_are_not_there(records: Records) -> None:
    for step in (
        lambda: records.promote("v9", at=T0, why="x"),
        lambda: records.set_verdict("v9", "x"),
    ):
        with pytest.raises(RecordsError, match="no model 'v9' is on record"):
            step()
    with pytest.raises(RecordsError, match="no champion before"):
        records.rollback(at=T0)
    records.add_model(model("v1"))
    with pytest.raises(RecordsError, match="v1 is on record already"):
        records.add_model(replace(model("v1"), path="/elsewhere"))


def test_of_many_promoted_at_once_one_is_champion(records: Records, another: Open) -> None:
    for n in range(6):
        records.add_model(model(f"v{n}"))
    workers = [another() for _ in range(6)]
    start = threading.Barrier(6)

    def promote(n: int) -> None:
        start.wait()
        workers[n].promote(f"v{n}", at=T0, why="race")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(promote, range(6)))
    assert sorted(stages(records).values()).count(Stage.CHAMPION) == 1


# Users


def test_users_log_in_with_their_password_alone(records: Records) -> None:
    assert records.add_user("ann", "correct horse", role="admin").role is Role.ADMIN
    records.add_user("bob", "battery staple")
    found = records.check_password("ann", "correct horse")
    assert found is not None and (found.name, found.role) == ("ann", Role.ADMIN)
    assert records.check_password("ann", "battery staple") is None
    assert records.check_password("ann", "") is None
    assert records.check_password("nobody", "correct horse") is None
    assert [(user.name, user.role, user.disabled) for user in records.users()] == [
        ("ann", Role.ADMIN, False),
        ("bob", Role.OPERATOR, False),
    ]


def test_disabling_and_new_passwords_take_effect(records: Records, another: Open) -> None:
    records.add_user("ann", "correct horse")
    another().set_disabled("ann", True)
    assert records.check_password("ann", "correct horse") is None
    assert records.users()[0].disabled
    records.set_disabled("ann", False)
    records.set_password("ann", "battery staple")
    assert records.check_password("ann", "correct horse") is None
    assert records.check_password("ann", "battery staple") is not None


def test_users_that_cannot_be(records: Records) -> None:
    records.add_user("ann", "correct horse")
    for name, password, role, says in (
        ("ann", "another", "viewer", "'ann' exists already"),
        ("eve", "password", "root", "no role 'root'; known are: viewer, operator, admin"),
        ("eve", "", "viewer", "give both"),
        (" ", "password", "viewer", "give both"),
    ):
        with pytest.raises(RecordsError, match=says):
            records.add_user(name, password, role)
    with pytest.raises(RecordsError, match="no user 'eve'"):
        records.set_disabled("eve", True)
    with pytest.raises(RecordsError, match="no user 'eve'"):
        records.set_password("eve", "password")


def test_a_name_that_nobody_has_takes_as_long(records: Records) -> None:
    """Else the time of the answer would tell which names exist."""
    import time

    records.add_user("ann", "correct horse")

    def seconds(name: str) -> float:
        times = []
        for _ in range(2):
            begun = time.perf_counter()
            records.check_password(name, "wrong")
            times.append(time.perf_counter() - begun)
        return min(times)

    seconds("nobody")  # makes the hash that stands in for a missing one
    assert seconds("nobody") > seconds("ann") / 3


# Dead letters, secrets, ticks


def test_dead_letters_are_kept_to_the_byte(records: Records) -> None:
    letters = [
        Reject("plant/a/readings", b"\x00\xff{not json", "not JSON", 1_700_000_000_000_001),
        Reject("plant/b\0/\ud800readings", b"", "strange \0 topic", 1_700_000_000_000_002),
        Reject("plant/c", "ü".encode() * 1000, "too long", 1_700_000_000_000_003),
    ]
    records.add_dead_letters([])
    records.add_dead_letters(letters)
    assert records.dead_letter_count() == 3
    found = records.dead_letters()
    assert [letter.reject.received_us % 10 for letter in found] == [3, 2, 1]
    assert found[2].reject == letters[0]
    assert found[0].reject.payload == letters[2].payload
    assert found[1].reject.topic == "plant/b\N{REPLACEMENT CHARACTER}/?readings"
    assert len(records.dead_letters(limit=1)) == 1
    assert records.delete_dead_letters([found[0].number, found[2].number, 999]) == 2
    assert records.dead_letters() == [found[1]]


def test_a_secret_is_made_once(records: Records, another: Open) -> None:
    workers = [another() for _ in range(4)]
    start = threading.Barrier(4)

    def ask(n: int) -> str:
        start.wait()
        return workers[n].secret("session")

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(ask, range(4)))
    assert len(found) == 1
    assert len(found.pop()) >= 43
    assert records.secret("session") != records.secret("another")


def test_ticks(records: Records) -> None:
    assert records.last_tick("assess") is None
    records.set_tick("assess", T0)
    records.set_tick("retrain", T0 + HOUR)
    records.set_tick("assess", T0 + timedelta(microseconds=1))
    assert records.last_tick("assess") == T0 + timedelta(microseconds=1)
    assert records.last_tick("retrain") == T0 + HOUR
