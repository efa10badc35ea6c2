"""Random streams by name, so that nothing shifts when something else draws more."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import numpy as np


@dataclass(frozen=True, slots=True)
class Streams:
    """Independent streams of one seed, each found again by its name.

    Every stream must be drawn from forward in time: by one array whose first axis is time, or draw after draw as
    things happen. Then a longer simulation begins with the shorter one.
    """

    seed: int
    path: tuple[int, ...] = ()

    def within(self, name: str | int) -> Streams:
        """The streams of one part of the plant."""
        return Streams(self.seed, (*self.path, _number(name)))

    def of(self, name: str | int) -> np.random.Generator:
        """A fresh generator at the beginning of the named stream."""
        return np.random.default_rng([self.seed, *self.path, _number(name)])


def _number(name: str | int) -> int:
    return name if isinstance(name, int) else crc32(name.encode())
