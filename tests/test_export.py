"""The ONNX form of a model: equal to the network, portable, the same for a window alone and in company."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from forecasting import checkpoint, explain, model
from forecasting.batches import Windows
from forecasting.export import INPUTS, PORTABLE, blank_windows, int8_of, onnx_of_artefact, operators
from forecasting.model import Architecture, HazardTransformer
from forecasting.predict import TransformerForecaster, load
from forecasting.runtimes import BATCH, OnnxRuntime, arrays_of
from forecasting.served import Served
from forecasting.train import fit
from forecasting.windows import schema_of
from pm.cli import main
from pm.domain import History, from_us
from pm.errors import ModelError
from tests.forecasting_cases import TINY, worn_plant

NAMES = tuple(f"pump-{n}" for n in range(6))


@pytest.fixture(scope="module")
def plant() -> History:
    return worn_plant()


@pytest.fixture(scope="module")
def plain(plant) -> TransformerForecaster:
    settings = TINY.model_copy(update={"layers": 2, "epochs": 4, "learning_rate": 3e-3})
    return TransformerForecaster(
        fit(plant, NAMES[:4], NAMES[4:], schema_of(plant, settings), settings, name="tiny").artefact
    )


@pytest.fixture(scope="module")
def exported(plain, plant) -> TransformerForecaster:
    artefact = replace(plain.artefact, onnx=onnx_of_artefact(plain.artefact), samples=plain.sample(plant))
    return TransformerForecaster(artefact)


@pytest.fixture(scope="module")
def windows(plain, plant) -> Windows:
    drawn = Windows(*(torch.from_numpy(values) for values in plain.sample(plant).values()))
    padded = drawn.alive.clone()
    padded[::3, :2] = False
    return replace(drawn, alive=padded)


def network_of(forecaster: TransformerForecaster) -> HazardTransformer:
    network = HazardTransformer(forecaster.artefact.architecture)
    network.load_state_dict(dict(forecaster.artefact.weights))
    return network.eval()


def test_the_serving_form_says_what_the_network_says(plain, windows):
    network = network_of(plain)
    with torch.no_grad():
        outlook = network(windows, last=True)
        said = Served(network, windows.alive.shape[1])(*(getattr(windows, name) for name in INPUTS))
    logits, life, embedding = said
    torch.testing.assert_close(logits, outlook.logits[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(life, outlook.rul[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embedding, outlook.embedding[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"members": 2},
        {"summary_columns": 0},
        {"slow_columns": 0},
        {"layers": 1},
        {"own_odds": True},
        {"told_residuals": True},
    ],
    ids=str,
)
def test_whatever_the_network_its_serving_form_says_the_same(sizes):
    torch.manual_seed(0)
    whole = Architecture(4, 14, 3, 2, 4, 6, 2, width=16, layers=2, heads=2, dropout=0.1, summary_columns=5)
    whole = replace(whole, **sizes)
    network = model.network_of(whole).eval()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    presence = torch.rand(6, 40, 4) > 0.3
    presence[1, :, 2] = False
    told = presence & (torch.rand(6, 40, 4) > 0.3)
    values = torch.randn(6, 40, 8) * torch.cat([presence, told], dim=-1)
    steps = torch.cat([values, presence.float(), torch.rand(6, 40, 2)], dim=-1)
    alive = torch.ones(6, 10, dtype=torch.bool)
    alive[2, :7], alive[3, :1] = False, False
    slow, summary = torch.rand(6, 10, whole.slow_columns), torch.randn(6, 1, whole.summary_columns)
    drawn = Windows(steps, slow, torch.randn(6, 2), alive, summary)
    with torch.no_grad():
        outlook = network(drawn, last=True)
        said = Served(network, tokens=10)(*(getattr(drawn, name) for name in INPUTS))
    for ours, theirs in zip(said, (outlook.logits, outlook.rul, outlook.embedding), strict=True):
        torch.testing.assert_close(ours, theirs[:, 0], rtol=1e-4, atol=1e-5)


def test_the_graph_is_portable_and_its_batch_axis_alone_is_dynamic(exported):
    content = exported.artefact.onnx
    assert operators(content) <= PORTABLE
    session = onnxruntime.InferenceSession(content)
    for value in (*session.get_inputs(), *session.get_outputs()):
        assert isinstance(value.shape[0], str)
        assert all(isinstance(size, int) for size in value.shape[1:])


def test_onnx_forecasts_what_torch_forecasts(exported, plain, plant):
    assert exported.runtime.name.startswith("ONNX Runtime")
    assert plain.runtime.name.startswith("torch")
    assert exported.version == plain.version
    at = from_us(1_736_000_000_000_000)
    for ours, theirs in zip(exported.forecast(plant, at), plain.forecast(plant, at), strict=True):
        np.testing.assert_allclose(ours.hazard, theirs.hazard, rtol=1e-4)
        assert ours.rul_hours == pytest.approx(theirs.rul_hours, rel=1e-4)


def test_a_window_has_the_same_bits_alone_and_anywhere_in_any_batch(exported, windows):
    runtime = exported.runtime
    assert isinstance(runtime, OnnxRuntime)
    many = explain.pick(windows, np.arange(len(windows)).repeat(3)[: 2 * BATCH + 5])
    whole = runtime.answer(lambda rows: explain.pick(many, rows), len(many))
    shuffled = np.random.default_rng(0).permutation(len(many))
    again = runtime.answer(lambda rows: explain.pick(many, shuffled[rows]), len(many))
    np.testing.assert_array_equal(again.logits, whole.logits[shuffled])
    for row in (0, 17, len(many) - 1):
        alone = runtime.answer(lambda rows, row=row: explain.pick(many, rows + row), 1)
        np.testing.assert_array_equal(alone.logits[0], whole.logits[row])
        np.testing.assert_array_equal(alone.life[0], whole.life[row])


def test_where_a_cpu_is_uneven_a_window_is_run_in_a_full_batch(exported, windows):
    runtime = OnnxRuntime(exported.artefact.onnx)
    sizes: list[int] = []
    run = runtime.run
    runtime.run = lambda inputs: sizes.append(len(inputs["static"])) or run(inputs)  # type: ignore[method-assign]
    runtime._evenly = False
    pick = lambda rows: explain.pick(windows, rows)  # noqa: E731
    padded = runtime.answer(pick, 3)
    assert sizes == [BATCH]
    np.testing.assert_array_equal(padded.logits, exported.runtime.answer(pick, 3).logits)


def test_grid_and_moment_have_the_same_bits_in_onnx(exported, plant):
    table = exported.forecast_grid(plant, NAMES[:3])
    for row in np.random.default_rng(1).integers(0, len(table), 12):
        at = from_us(int(table.time_us[row]))
        forecast = exported.forecast(plant, at)[int(table.asset_index[row])]
        assert forecast.hazard == tuple(table.hazard[row].tolist())
        assert forecast.rul_hours == table.rul_hours[row]


def test_int8_is_small_portable_and_near(exported, windows):
    samples = exported.artefact.samples
    content = int8_of(exported.artefact.onnx, samples)
    assert operators(content) <= PORTABLE
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators(content)
    near, exact = OnnxRuntime(content), exported.runtime
    logits = near.run(arrays_of(windows, list(INPUTS)))[0]
    truth = exact.run(arrays_of(windows, list(INPUTS)))[0]
    assert 0 < np.abs(logits - truth).max() < 0.1 * np.abs(truth).max()
    with pytest.raises(ModelError, match="--recording"):
        int8_of(exported.artefact.onnx, {})


def test_the_onnx_form_is_kept_with_the_model_and_a_damaged_one_is_refused(exported, plant, tmp_path):
    version = checkpoint.save(exported.artefact, tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.version == version == exported.version
    assert again.artefact.onnx == exported.artefact.onnx
    np.testing.assert_array_equal(again.artefact.samples["steps"], exported.artefact.samples["steps"])
    at = from_us(1_736_000_000_000_000)
    assert again.forecast(plant, at) == exported.forecast(plant, at)
    file = tmp_path / "model" / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"model\.onnx: does not match its SHA-256"):
        load(tmp_path / "model")


def test_the_runtime_is_what_the_setting_says(exported, plain):
    assert TransformerForecaster(exported.artefact, runtime="torch").runtime.name.startswith("torch")
    with pytest.raises(ModelError, match=r"train\.onnx"):
        TransformerForecaster(plain.artefact, runtime="onnx")
    spoiled = replace(exported.artefact, onnx=b"no model")
    with pytest.raises(ModelError, match=r"model\.onnx is refused"):
        TransformerForecaster(spoiled, runtime="onnx")
    assert TransformerForecaster(spoiled).runtime.name.startswith("torch")


def test_blank_windows_have_the_shapes_of_real_ones(plain, windows):
    blank = blank_windows(plain.artefact.schema, plain.artefact.normaliser)
    for name in INPUTS:
        assert getattr(blank, name).shape[1:] == getattr(windows, name).shape[1:]
    assert not blank.alive.any()


def test_the_command_writes_both_forms(exported, tmp_path, capsys):
    checkpoint.save(exported.artefact, tmp_path / "model")
    for extra, precision in ((), "fp32"), (("--int8",), "int8"):
        with pytest.raises(SystemExit, match="0"):
            main(["export", str(tmp_path / "model"), "--out", str(tmp_path / precision), "--json", *extra])
        told = json.loads(capsys.readouterr().out)
        assert told["precision"] == precision
        assert told["opset"] == 18
        content = (tmp_path / precision).read_bytes()
        assert len(content) == told["bytes"]
        assert onnxruntime.InferenceSession(content).get_inputs()[0].name in INPUTS
