"""The fuzz targets on their seeds, on damaged ones, and on what was found. For longer: python -m tests.fuzz."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.fuzz.targets import TARGETS

FOUND = sorted((Path(__file__).parent / "fuzz" / "cases").iterdir())
SLOW = 5
"""Inputs of a target that writes files, where others take a hundred."""


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_was_found_once_has_its_end_now(path: Path) -> None:
    TARGETS[path.name.partition(".")[0]].run(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_whole_and_damaged_have_an_end(name: str) -> None:
    target, chance = TARGETS[name], Random(name)
    target.run(b"")
    for seed in target.seeds:
        target.run(seed)
        for _ in range(SLOW if name.startswith("recording") else 100):
            content = bytearray(seed)
            for _ in range(chance.randint(1, 4)):
                place = chance.randrange(len(content) + 1)
                content[place : place + chance.choice((0, 1, 1, 4))] = chance.randbytes(chance.choice((0, 1, 1, 3)))
            target.run(bytes(content))
