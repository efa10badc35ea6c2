"""What runs the network in service: ONNX Runtime where the model holds an ONNX form, torch otherwise.

Either way a window's numbers depend on nothing but the window, so that forecasts of one asset and of many, now and in
a replay, have the same bits. The two differ from each other in the last bits of a float32; which of them a forecaster
uses follows from the model and the setting alone, and is told.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from forecasting.batches import Windows
from forecasting.export import INPUTS, OUTPUTS, Answer
from forecasting.inference import outlooks
from forecasting.model import Network
from forecasting.windows import Ints
from pm.errors import ModelError

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Choice = Literal["auto", "onnx", "torch"]

BATCH = 16
"""Windows that ONNX Runtime is given at a time where there are many."""
ALONE = 8
"""Up to so many windows left over are run one by one, which costs less than filling up a batch."""


class Runtime(Protocol):
    """Runs a network over windows; safe to share between threads."""

    name: str
    """What a person is told."""

    def answer(self, windows: Callable[[Ints], Windows], count: int) -> Answer:
        """What the network says of `count` windows. windows: gives those of these numbers; called from threads."""


class TorchRuntime:
    """The network itself, on the device it stands on."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.name = f"torch {torch.__version__} on {next(network.parameters()).device}"

    def answer(self, windows: Callable[[Ints], Windows], count: int) -> Answer:
        return Answer(*outlooks(self._network, windows, count))


class OnnxRuntime:
    """ONNX Runtime on the CPU, one thread a batch, several batches side by side."""

    def __init__(self, model: bytes) -> None:
        """Raises ModelError when ONNX Runtime is not installed or refuses the model."""
        try:
            import onnxruntime
        except ImportError:
            raise ModelError("onnxruntime is not installed; install it, or set assess.runtime = 'torch'") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common root of their own
            raise ModelError(f"model.onnx is refused by ONNX Runtime ({error}); export the model anew") from None
        expected = [value.name for value in self._session.get_inputs()]
        missing = set(expected) - set(INPUTS)
        if missing:
            raise ModelError(
                f"model.onnx asks for {min(missing)!r}, which this version of pm does not make; train anew"
            )
        # What no operator reads is left out of the graph.
        self._inputs = expected
        lacking = set(OUTPUTS) - {value.name for value in self._session.get_outputs()}
        if lacking:
            raise ModelError(f"model.onnx does not tell {min(lacking)!r}, as one of an older pm; export the model anew")
        self.name = f"ONNX Runtime {onnxruntime.__version__}"
        self._evenly = self._even()

    def answer(self, windows: Callable[[Ints], Windows], count: int) -> Answer:
        if count == 1 and self._evenly:
            said = self.run(arrays_of(windows(np.zeros(1, np.int64)), self._inputs))
            return Answer(*(values.astype(np.float64) for values in said))
        ends = [*range(0, count - count % BATCH, BATCH)]
        places = [slice(begin, begin + BATCH) for begin in ends]
        rest = count % BATCH
        if rest and (not self._evenly or rest > ALONE):
            places.append(slice(count - rest, count))
        elif rest:
            places += [slice(place, place + 1) for place in range(count - rest, count)]
        alone = 1 if self._evenly else BATCH

        def run(place: slice) -> list[Array]:
            size = place.stop - place.start
            filled = alone if size == 1 else BATCH
            rows = np.minimum(np.arange(place.start, place.start + filled, dtype=np.int64), count - 1)
            return [values[:size] for values in self.run(arrays_of(windows(rows), self._inputs))]

        workers = min(torch.get_num_threads(), len(places))
        if workers > 1 and count > 1:
            with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                parts = list(pool.map(run, places))
        else:
            parts = [run(place) for place in places]
        if not parts:
            parts = [[values[:0] for values in self.run(arrays_of(windows(np.zeros(1, np.int64)), self._inputs))]]
        return Answer(*(np.concatenate(values).astype(np.float64) for values in zip(*parts, strict=True)))

    def run(self, inputs: dict[str, Array]) -> list[Array]:
        """The graph's outputs, in the order of `Answer`."""
        return list(self._session.run(list(OUTPUTS), inputs))

    def _even(self) -> bool:
        """Whether a window alone has the bits that it has in a full batch, wherever it stands there.

        So it is where kernels add up each row in one order whatever stands beside it, as ONNX Runtime's do on every
        CPU that we tried. Which order a kernel takes follows from shapes and not from values, so that one look
        decides. Where a CPU's kernels differ, a single window is run in a full batch and costs as much.
        """
        rng = np.random.default_rng(0)
        inputs = {}
        for value in self._session.get_inputs():
            shape = (BATCH, *value.shape[1:])
            drawn = rng.standard_normal(shape, dtype=np.float32)
            inputs[value.name] = drawn > -1.0 if value.type == "tensor(bool)" else drawn
        whole = self.run(inputs)
        for row in range(BATCH):
            single = self.run({name: values[row : row + 1] for name, values in inputs.items()})
            if not all(np.array_equal(a[0], b[row], equal_nan=True) for a, b in zip(single, whole, strict=True)):
                log.info("this CPU gives a window other bits alone than in a batch, so each is run in a batch")
                return False
        return True


def arrays_of(windows: Windows, names: list[str]) -> dict[str, Array]:
    """The tensors of windows as ONNX Runtime takes them, without copying on a CPU."""
    return {name: np.ascontiguousarray(getattr(windows, name).numpy(force=True)) for name in names}


def choose(choice: Choice, network: Network, onnx: bytes | None) -> Runtime:
    """The runtime of a setting: `auto` takes ONNX Runtime where the network stands on the CPU and the model holds an
    ONNX form, torch otherwise. Raises ModelError when `onnx` is asked for and cannot be had."""
    on_cpu = next(network.parameters()).device.type == "cpu"
    if choice == "torch" or (choice == "auto" and (onnx is None or not on_cpu)):
        return TorchRuntime(network)
    if onnx is None:
        raise ModelError(
            "the model holds no ONNX form, which assess.runtime = 'onnx' asks for; train it with train.onnx = true, "
            "or set assess.runtime = 'auto'"
        )
    try:
        return OnnxRuntime(onnx)
    except ModelError as error:
        if choice == "onnx":
            raise
        log.warning("forecasting with torch: %s", error)
        return TorchRuntime(network)
