"""Training that was cut off goes on where it was: all of its state in one safetensors file, replaced whole.

Randomness needs no place in it: batches follow from the seed and the epoch, dropout from the seed and the step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pm.config import TrainSection
from pm.errors import TrainingError

FORMAT = 3
MAY_DIFFER = frozenset({"max_minutes", "device", "snapshot", "accumulate", "compile", "memory", "members"})
"""Settings that change how fast the same training goes, not where."""


@dataclass(frozen=True)
class Snapshot:
    """Where training stood."""

    tensors: Mapping[str, Tensor]
    """Networks and optimiser, by name."""
    numbers: Mapping[str, Any]
    """Counters, scores and epochs: whatever JSON holds."""


class SnapshotFile:
    """The file of one training. It belongs to one data set and one set of settings, and says so."""

    def __init__(self, path: Path, settings: TrainSection, fingerprint: str) -> None:
        """fingerprint: of the history that is trained on."""
        self.path = path
        told = {key: value for key, value in settings.model_dump(mode="json").items() if key not in MAY_DIFFER}
        text = json.dumps([told, fingerprint], sort_keys=True)
        self._belongs = hashlib.sha256(text.encode()).hexdigest()

    def save(self, snapshot: Snapshot) -> None:
        """Replace the file; a crash leaves the old one or the new one. Raises TrainingError where it cannot."""
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        metadata = {
            "format": str(FORMAT),
            "belongs": self._belongs,
            "numbers": json.dumps(dict(snapshot.numbers)),
        }
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in snapshot.tensors.items()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, partial, metadata)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(self.path)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise TrainingError(f"{self.path}: training's state cannot be written ({error}); mend the disk") from None

    def load(self) -> Snapshot | None:
        """What was saved, None where nothing was.

        Raises TrainingError for a damaged file and for one of other data or settings.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            numbers = json.loads(metadata["numbers"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise TrainingError(
                f"{self.path}: no state of a training, or damaged ({error}); remove it to begin again"
            ) from None
        if metadata.get("format") != str(FORMAT) or metadata.get("belongs") != self._belongs:
            raise TrainingError(
                f"{self.path}: belongs to a training on other data or with other settings; "
                "go on with those, or remove it to begin again"
            )
        return Snapshot(tensors, numbers)


def remove(path: Path) -> None:
    """Every file of a training whose state is kept under this name."""
    for file in path.parent.glob(f"{path.name}.*"):
        file.unlink(missing_ok=True)
