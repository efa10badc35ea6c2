"""An edge node by somebody else: pysparkplug, in a process and with packages of its own.

`make test` installs it into the folder `edge` of the virtual environment, beside the service's packages and not among
them: it needs an older paho-mqtt. Run as a program, this module is that process; it takes commands as lines of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLDER = Path(sys.prefix) / "edge"


class EdgeProcess:
    """The edge node as a test holds it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def do(self, what: str, **values: Any) -> None:
        """Give a command and wait until it is done."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": what, **values}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        assert answer == "done", answer or "the edge node has ended"

    def kill(self) -> None:
        """As a power cut: the broker publishes its will."""
        self._process.kill()
        self._process.wait()


@contextmanager
def sparkplug_edge(port: int, *, group: str = "plant", node: str = "line1") -> Iterator[EdgeProcess]:
    """Started, and not connected yet. Skips, or in CI fails, where pysparkplug is not installed."""
    import pytest

    if not (FOLDER / "pysparkplug").is_dir():
        message = f"pysparkplug is not in {FOLDER}; 'make test' installs it there"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    process = subprocess.Popen(
        [sys.executable, __file__, str(port), group, node],
        env={**os.environ, "PYTHONPATH": str(FOLDER)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield EdgeProcess(process)
    finally:
        process.kill()
        process.wait()


def main(port: str, group: str, name: str) -> None:
    import pysparkplug as psp

    def metric(name: str, kind: str, value: Any, **fields: Any) -> psp.Metric:
        now = fields.pop("at_ms", None) or time.time_ns() // 1_000_000
        return psp.Metric(timestamp=now, name=name, datatype=psp.DataType[kind], value=value, **fields)

    rebirths = 0

    def on_command(edge: psp.EdgeNode, message: psp.Message) -> None:
        nonlocal rebirths
        asked = {(m.name, m.value) for m in message.payload.metrics}
        rebirths += ("Node Control/Rebirth", True) in asked

    control = metric("Node Control/Rebirth", "BOOLEAN", False)
    edge = psp.EdgeNode(group, name, [control, metric("cpu", "FLOAT", 0.5)], cmd_callback=on_command)
    kinds: dict[str, dict[str, str]] = {}
    aliases: dict[tuple[str, str], int] = {}

    def metrics(device: str, values: dict[str, Any], **fields: Any) -> list[psp.Metric]:
        return [metric(n, kinds[device][n], v, alias=aliases[device, n], **fields) for n, v in values.items()]

    for line in sys.stdin:
        command = json.loads(line)
        match command.pop("do"):
            case "connect":
                edge.connect("127.0.0.1", port=int(port))
            case "disconnect":
                edge.disconnect()
            case "register":
                device = command["device"]
                kinds[device] = {name: kind for name, (kind, _) in command["metrics"].items()}
                aliases |= {(device, name): len(aliases) + n for n, name in enumerate(kinds[device], 1)}
                values = {name: value for name, (_, value) in command["metrics"].items()}
                edge.register(psp.Device(device, metrics(device, values)))
            case "deregister":
                edge.deregister(command["device"])
            case "update":
                fields = {"is_historical": True, "at_ms": command["at_ms"]} if "at_ms" in command else {}
                edge.update_device(command["device"], metrics(command["device"], command["values"], **fields))
            case "expect rebirth":
                deadline = time.monotonic() + 20
                while not rebirths and time.monotonic() < deadline:
                    time.sleep(0.01)
                print("done" if rebirths else "no rebirth was asked for", flush=True)
                continue
        print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
