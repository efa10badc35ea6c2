"""A trained model on disk: a folder of safetensors, JSON and ONNX under SHA-256. Nothing in it can run code.

manifest.json         format, and the SHA-256 of the others
model.json            schema, normaliser, architecture, calibration, thresholds, split, metrics, versions
weights.safetensors   the network's weights
model.onnx            the network for ONNX Runtime, where the model was trained with it
reference.safetensors what a forecast is compared with: ranges and embeddings of training (`forecasting.reference`)
samples.safetensors   some windows of validation assets, from which int8 forms take their ranges
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as read_arrays
from safetensors.numpy import save as write_arrays
from safetensors.torch import load as read_weights
from safetensors.torch import save as write_weights
from torch import Tensor

from forecasting.calibrate import Calibration
from forecasting.features import Normaliser, slow_width
from forecasting.model import Architecture
from forecasting.reference import Reference
from forecasting.split import Split
from forecasting.windows import FeatureSchema
from pm.errors import ModelError

FORMAT = 1
MANIFEST, MODEL, WEIGHTS = "manifest.json", "model.json", "weights.safetensors"
REFERENCE, ONNX, SAMPLES = "reference.safetensors", "model.onnx", "samples.safetensors"


@dataclass(frozen=True)
class Artefact:
    """Everything that a forecaster is made of."""

    name: str
    """What a person calls it, or when it was made; the first part of its version."""
    schema: FeatureSchema
    normaliser: Normaliser
    architecture: Architecture
    weights: Mapping[str, Tensor]
    calibration: Calibration
    split: Split
    trained_until: datetime
    """The latest time that training, early stopping or calibration saw."""
    validation_from: datetime | None = None
    """When the training assets' part ended and later time began, which stops and calibrates; None where the assets
    alone tell them apart."""
    fingerprint: str = ""
    """SHA-256 of the history it was trained on."""
    precision: str = "fp32"
    seed: int = 0
    thresholds: Mapping[float, float] = field(default_factory=dict)
    """Alert threshold on the 72 h probability by alert budget."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    reference: Reference | None = field(default=None, repr=False)
    """What a forecast is compared with; None in models of an older pm, which abstain from nothing strange."""
    onnx: bytes | None = field(default=None, repr=False)
    """The network as `forecasting.export.onnx_of` writes it. It follows from the rest: no say in the version."""
    samples: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    """Windows of validation assets by tensor (`forecasting.batches.Windows`); no say in the version either."""

    @property
    def version(self) -> str:
        """Name and the first twelve digits of the hash over the content, whether saved or not."""
        return f"{self.name}@{hashlib.sha256(_manifest(_contents(self))).hexdigest()[:12]}"


def save(artefact: Artefact, folder: Path) -> str:
    """Write a new folder, whole or not at all, and return the version. Raises ModelError when it exists."""
    if folder.exists():
        raise ModelError(f"{folder}: exists already; name another folder or remove it")
    contents = _contents(artefact)
    if artefact.onnx is not None:
        contents[ONNX] = artefact.onnx
    if artefact.samples:
        contents[SAMPLES] = write_arrays(dict(artefact.samples))
    contents[MANIFEST] = _manifest(contents)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        for name, content in contents.items():
            with (partial / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ModelError(
            f"{folder}: cannot be written ({error.strerror}); mend the disk or name another folder"
        ) from None
    return artefact.version


def load(folder: Path) -> Artefact:
    """Read a folder that `save` wrote. Raises ModelError, naming file and mend, for anything else."""
    manifest = _json(folder / MANIFEST, _bytes(folder / MANIFEST))
    if (
        not isinstance(manifest, dict)
        or manifest.get("format") != FORMAT
        or not isinstance(manifest.get("files"), dict)
    ):
        raise ModelError(f"{folder / MANIFEST}: not a model of format {FORMAT}; train one with this version of pm")
    strange = sorted(manifest["files"].keys() - {MODEL, WEIGHTS, REFERENCE, ONNX, SAMPLES})
    if strange:
        raise ModelError(f"{folder / MANIFEST}: names {strange[0]!r}, which no model has; copy the model again")
    contents = {}
    for name in (MODEL, WEIGHTS, *sorted({REFERENCE, ONNX, SAMPLES} & manifest["files"].keys())):
        contents[name] = _bytes(folder / name)
        if hashlib.sha256(contents[name]).hexdigest() != manifest["files"].get(name):
            raise ModelError(f"{folder / name}: does not match its SHA-256, so it is damaged; copy the model again")
    try:
        weights = read_weights(contents[WEIGHTS])
        samples = read_arrays(contents[SAMPLES]) if SAMPLES in contents else {}
        values = _json(folder / MODEL, contents[MODEL])
        read = _artefact(values, weights)
        if ("reference" in values) != (REFERENCE in contents):
            raise ValueError(f"{REFERENCE}, which {MANIFEST} and {MODEL} do not agree on")
        if REFERENCE in contents:
            read = replace(read, reference=Reference.of(read_arrays(contents[REFERENCE]), values["reference"]))
        return replace(read, onnx=contents.get(ONNX), samples=samples)
    except SafetensorError as error:
        raise ModelError(
            f"{folder}: {WEIGHTS}, {REFERENCE} or {SAMPLES} is not safetensors ({error}); train the model anew"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{folder / MODEL}: lacks or misstates {error}; train the model anew") from None


def installed_versions() -> dict[str, str]:
    """Versions of what shapes the numbers, kept with the model."""
    found = {"torch": torch.__version__, "numpy": np.__version__}
    for package in ("pm", "safetensors", "onnx", "onnxruntime", "lightgbm"):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _contents(artefact: Artefact) -> dict[str, bytes]:
    values = {
        "name": artefact.name,
        "schema": artefact.schema.as_json(),
        "normaliser": artefact.normaliser.as_json(),
        "architecture": artefact.architecture.as_json(),
        "calibration": artefact.calibration.as_json(),
        "split": asdict(artefact.split),
        "trained_until": artefact.trained_until.isoformat(),
        "fingerprint": artefact.fingerprint,
        "precision": artefact.precision,
        "seed": artefact.seed,
        "thresholds": sorted([budget, threshold] for budget, threshold in artefact.thresholds.items()),
        "metrics": dict(artefact.metrics),
        "versions": dict(artefact.versions),
    }
    if artefact.validation_from is not None:
        values["validation_from"] = artefact.validation_from.isoformat()
    if artefact.reference is not None:
        values["reference"] = artefact.reference.as_json()
    text = json.dumps(values, sort_keys=True, indent=1, allow_nan=False)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(artefact.weights.items())}
    contents = {MODEL: text.encode(), WEIGHTS: write_weights(weights)}
    if artefact.reference is not None:
        arrays = sorted(artefact.reference.arrays().items())
        contents[REFERENCE] = write_arrays({name: np.ascontiguousarray(array) for name, array in arrays})
    return contents


def _manifest(contents: Mapping[str, bytes]) -> bytes:
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return json.dumps({"format": FORMAT, "files": files}, sort_keys=True, indent=1).encode()


def _artefact(values: Any, weights: dict[str, Tensor]) -> Artefact:
    schema = FeatureSchema.from_json(values["schema"])
    split = {part: tuple(names) for part, names in values["split"].items()}
    architecture = Architecture(**values["architecture"])
    validation_from = values.get("validation_from")
    if architecture.slow_columns != slow_width(schema):
        raise ValueError("slow_columns, which another version of pm laid out")
    return Artefact(
        name=values["name"],
        schema=schema,
        normaliser=Normaliser.from_json(values["normaliser"], schema),
        architecture=architecture,
        weights=weights,
        calibration=Calibration.from_json(values["calibration"]),
        split=Split(**split),
        trained_until=datetime.fromisoformat(values["trained_until"]),
        validation_from=None if validation_from is None else datetime.fromisoformat(validation_from),
        fingerprint=values["fingerprint"],
        precision=values["precision"],
        seed=values["seed"],
        thresholds={float(budget): float(threshold) for budget, threshold in values["thresholds"]},
        metrics=values["metrics"],
        versions=values["versions"],
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); name the folder of a trained model") from None


def _json(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise ModelError(f"{path}: not JSON ({error}); copy the model again or train it anew") from None
