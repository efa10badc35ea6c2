"""The command that takes a model elsewhere: `pm export`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pm.commands.options import EXISTING_FOLDER, FILE, config_option, json_option


@click.command()
@click.argument("model")
@click.option("--format", "form", type=click.Choice(["onnx"]), default="onnx", show_default=True, help="File format.")
@click.option("--int8", is_flag=True, help="Weights and activations in int8 (QDQ, symmetric, static ranges).")
@click.option(
    "--recording", type=EXISTING_FOLDER, help="Take int8 ranges from this; from the model's own sample when left out."
)
@click.option("--out", type=FILE, help="File to write; NAME.onnx or NAME.int8.onnx here when left out.")
@config_option
@json_option
def export(
    model: str, form: str, int8: bool, recording: Path | None, out: Path | None, config_path: Path | None, as_json: bool
) -> None:
    """The network of a model (a folder or a version) as a file for other runtimes.

    Inputs are windows of features as the model makes them, outputs are log odds before calibration; the batch axis
    alone is dynamic. docs/forecaster.md says what each tensor is.

    \b
    Example: pm export models/azure --format onnx --int8 --out azure.int8.onnx
    """
    from forecasting import export as exporting
    from pm import config, edges

    configuration = config.load(config_path)
    folder = Path(model)
    if folder.is_dir():
        forecaster = edges.load_folder(folder, "auto")
    else:
        with edges.open_records(configuration) as records:
            forecaster = edges.load_forecaster(records, model, "auto")
    artefact = forecaster.artefact
    content = artefact.onnx or exporting.onnx_of_artefact(artefact)
    if int8:
        samples = artefact.samples
        if recording is not None:
            from connectors import recordings

            samples = forecaster.sample(recordings.read(recording).history)
        content = exporting.int8_of(content, samples)
    target = out or Path(f"{artefact.name}{'.int8' if int8 else ''}.{form}")
    target.write_bytes(content)
    told = {
        "model": forecaster.version,
        "file": str(target),
        "bytes": len(content),
        "opset": exporting.OPSET,
        "operators": sorted(exporting.operators(content)),
        "precision": "int8" if int8 else "fp32",
    }
    size = f"opset {exporting.OPSET}, {len(content) / 1e6:.1f} MB"
    text = f"{forecaster.version} as {target}: {told['precision']}, {size}"
    click.echo(json.dumps(told, indent=1) if as_json else text)
