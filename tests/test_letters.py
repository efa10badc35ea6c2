"""Dead letters read again: stored when they can be, kept with the new reason when not, never both lost."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from connectors.embedded import EmbeddedStore
from connectors.letters import LetterFeed
from pm import config, edges
from pm.cli import pm
from pm.domain import EARLIEST, LATEST
from pm.errors import StoreUnavailable
from pm.ports import Reject

RECEIVED_US = 1_795_700_000_000_000  # 2026-11-26
GOOD = b'{"time": "2026-11-23T10:00:00Z", "values": {"volt": 171.5}}'
BAD = b'{"time": "2026-11-23T10:00:00Z", "values": {"volt": "high"}}'


@pytest.fixture
def plant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    configuration = config.load(None)
    with edges.open_records(configuration) as records:
        records.add_dead_letters(
            [
                Reject("plant/pump/readings", GOOD, "a rule of yesterday", RECEIVED_US + 1),
                Reject("plant/pump/readings", BAD, "old", RECEIVED_US + 2),
                Reject("elsewhere/pump", GOOD, "old", RECEIVED_US + 3),
                Reject("spBv1.0/g/DDATA/n/d", b"\x00", "old", RECEIVED_US + 4),
            ]
        )
        yield configuration, records


def run(*arguments: str) -> str:
    done = CliRunner().invoke(pm, ["deadletters", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_retry_stores_what_can_be_read_and_keeps_the_rest_with_its_reason(plant):
    configuration, records = plant
    assert json.loads(run("retry", "--json")) == {"stored": 1, "kept": 3}
    store = edges.open_store(configuration)
    assert store.readings(EARLIEST, LATEST)["volt"].tolist() == [171.5]
    store.close()
    reasons = {letter.reject.topic: letter.reject.reason for letter in records.dead_letters()}
    assert "not a number" in reasons["plant/pump/readings"]
    assert "no topic template" in reasons["elsewhere/pump"]
    assert "birth" in reasons["spBv1.0/g/DDATA/n/d"]
    assert [letter.reject.received_us - RECEIVED_US for letter in records.dead_letters()] == [4, 3, 2]
    assert "pump" in {asset.name for asset in records.assets()}


def test_only_the_numbers_named_are_tried_or_dropped(plant):
    _, records = plant
    first, second = sorted(letter.number for letter in records.dead_letters())[:2]
    run("retry", str(second))
    assert first in {letter.number for letter in records.dead_letters()}
    run("drop", str(first))
    assert records.dead_letter_count() == 3
    listed = json.loads(run("list", "--json"))
    assert len(listed) == 3
    assert "3 of 3 dead letters" in run("list")


def test_nothing_is_forgotten_while_the_store_is_away(plant, monkeypatch):
    configuration, records = plant
    store = edges.open_store(configuration)

    def away(self, readings, events=()):
        raise StoreUnavailable("the store is away")

    monkeypatch.setattr(EmbeddedStore, "write", away)
    before = records.dead_letters()
    with pytest.raises(StoreUnavailable, match="kept"):
        edges.retry_dead_letters(configuration, records, store)
    assert records.dead_letters() == before
    store.close()


def test_a_letter_is_forgotten_only_when_acknowledged(plant):
    configuration, _ = plant
    forgotten: list[int] = []
    feed = LetterFeed(
        [(7, Reject("plant/pump/readings", GOOD, "", RECEIVED_US))], [configuration.mqtt], forget=forgotten.extend
    )
    (delivery,) = feed.take(10, 0.0)
    assert not forgotten
    feed.acknowledge([delivery])
    assert forgotten == [7]
