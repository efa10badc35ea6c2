"""The network as ONNX through torch.export: fp32 or int8, in operators and shapes that TensorRT takes as well.

Inputs are the tensors of `Windows` by name, outputs those of `Answer`; of all axes the batch alone is dynamic. The
graph is that of a network in its serving form: the same weights and numbers (tests hold them equal within rounding)
written in fewer, larger operators, because at batch 1 an operator costs as much as its arithmetic.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from forecasting.batches import Resident, Windows
from forecasting.checkpoint import Artefact
from forecasting.features import Normaliser, features_of
from forecasting.model import Network, network_of
from forecasting.served import Served
from forecasting.windows import FeatureSchema, Grid
from pm.domain import Asset
from pm.errors import ModelError

Array = npt.NDArray[Any]

OPSET = 18
"""Operators of this ONNX version: all that is used here is in TensorRT 8.6 and ONNX Runtime 1.14."""
PORTABLE = frozenset(
    [
        "Add",
        "And",
        "Cast",
        "Clip",
        "Concat",
        "CumSum",
        "DequantizeLinear",
        "Div",
        "Equal",
        "Erf",
        "Expand",
        "Gather",
        "Gemm",
        "Greater",
        "Identity",
        "LayerNormalization",
        "MatMul",
        "Mul",
        "Not",
        "Or",
        "Pad",
        "Pow",
        "QuantizeLinear",
        "Range",
        "ReduceMax",
        "ReduceMean",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Shape",
        "Sigmoid",
        "Slice",
        "Softmax",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Tanh",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
        "Abs",
        "Exp",
        "Log",
        "Max",
        "Min",
        "Neg",
        "Less",
        "LessOrEqual",
        "GreaterOrEqual",
        "ConstantOfShape",
        "Constant",
    ]
)
"""Operators that the graph may hold: all in TensorRT's support matrix for ONNX."""
INPUTS = tuple(field.name for field in fields(Windows))


@dataclass(frozen=True, slots=True)
class Answer:
    """What the serving form says of B windows, at their last token."""

    logits: Array
    """[B, H, K] log odds of failing by mode k in bin j against surviving it."""
    life: Array
    """[B] remaining life as a share of the cap."""
    embedding: Array
    """[B, E] what the heads read."""


OUTPUTS = tuple(field.name for field in fields(Answer))


def blank_windows(schema: FeatureSchema, normaliser: Normaliser, count: int = 2) -> Windows:
    """Windows of assets that were never read: in their shapes, what a model of this schema is given in service."""
    none, rows = np.empty(0, np.int64), schema.context * count
    grid = Grid(
        schema=schema,
        assets=tuple(Asset(str(number), "") for number in range(count)),
        phase_us=schema.phase_us,
        offsets=np.arange(0, rows + 1, schema.context, dtype=np.int64),
        first_step=np.zeros(count, np.int64),
        values=np.full((rows, len(schema.points)), np.nan, np.float32),
        hung=np.zeros(rows, dtype=bool),
        visible=tuple((none, none) for _ in schema.event_channels),
        failures=(none, none, none),
        end_us=np.zeros(count, np.int64),
    )
    return Resident(grid, features_of(grid, normaliser)).windows(grid.offsets[1:] - 1, last=True)


def onnx_of(network: Network, example: Windows) -> bytes:
    """The network as an ONNX model in fp32.

    example: two windows or more of the shapes that will be served; only their shapes matter. Takes some ten seconds.
    """
    tensors = tuple(getattr(example, name).cpu() for name in INPUTS)
    batch = torch.export.Dim("batch", min=1, max=65_536)
    with _quiet(), torch.no_grad():
        served = Served(network, example.alive.shape[1])
        exported = torch.export.export(served, tensors, dynamic_shapes=(tuple({0: batch} for _ in tensors),))
        program: Any = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            external_data=False,
            verbose=False,
        )
    model = program.model_proto
    # Where in the source an operator came from would make the file's bytes depend on the place of installation.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    return bytes(model.SerializeToString(deterministic=True))


def onnx_of_artefact(artefact: Artefact) -> bytes:
    """`onnx_of` of a trained model, whose calibration is left to whoever runs it (`forecasting.calibrate`)."""
    network = network_of(artefact.architecture)
    network.load_state_dict(dict(artefact.weights))
    return onnx_of(network, blank_windows(artefact.schema, artefact.normaliser))


def operators(model: bytes) -> frozenset[str]:
    """The operators of an ONNX model, with their domain where it is not ONNX's own."""
    import onnx

    read = onnx.load_from_string(model)
    return frozenset(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in read.graph.node)


def int8_of(model: bytes, samples: Mapping[str, Array]) -> bytes:
    """The model with int8 weights and activations, statically: symmetric, weights by channel.

    samples: windows by tensor (`Windows`), from whose activations the ranges are taken. These are fixed, so that a
    window's numbers do not depend on the windows beside it, as they would with ranges taken from the batch (dynamic
    quantisation). What is quantised is the products with weights; the head stays fp32. In QDQ form, which TensorRT
    takes.
    Raises ModelError without samples.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Samples(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter([{name: samples[name] for name in names}])

        def get_next(self) -> Mapping[str, Array] | None:
            return next(self._left, None)

    names = [value.name for value in onnx.load_from_string(model).graph.input]
    if any(name not in samples or not len(samples[name]) for name in names):
        raise ModelError(
            "the model holds no sample of windows to take int8 ranges from; name a recording with --recording"
        )
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(model)
        quantize_static(
            source,
            target,
            Samples(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=_kept(model),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "MatMulConstBOnly": True},
        )
        return target.read_bytes()


def _kept(model: bytes) -> list[str]:
    """Products that stay fp32: those without a weight (attention), and the head's, from which the numbers come."""
    import onnx

    graph = onnx.load_from_string(model).graph
    constants = {tensor.name for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    kept = [node.name for node in products if not any(name in constants for name in node.input)]
    for node in products:
        ahead, seen = list(node.output), set()
        while ahead:
            name = ahead.pop()
            seen |= {reader.op_type for reader in readers.get(name, ())}
            ahead += [out for reader in readers.get(name, ()) for out in reader.output]
        if "LayerNormalization" not in seen:
            kept.append(node.name)
    return kept


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn of packages that are not needed, and the quantiser of shapes that are known."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
