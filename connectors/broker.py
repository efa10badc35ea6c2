"""A broker of our own for machines that have none: Mosquitto where it is installed, else rumqttd out of `iotcore`.

It listens on the loopback interface only. It is a child process; when it dies it is noticed and started again on the
same port, and one left behind by a `pm` that was killed is ended before another is started.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final, Literal

from pm.errors import FeedError, FeedUnavailable

log = logging.getLogger(__name__)

HOST: Final = "127.0.0.1"
_START_SECONDS: Final = 15.0
_STOP_SECONDS: Final = 10.0
_RESTART_SECONDS: Final = (1.0, 60.0)
"""Wait before starting a broker that ended by itself, at first and at most; it doubles between."""
_SBIN: Final = "/usr/sbin:/sbin:/usr/local/sbin"


class EmbeddedBroker:
    """`start()` gives its port, `stop()` ends it. Mosquitto keeps in `data_dir` what clients have not fetched."""

    def __init__(self, kind: Literal["auto", "mosquitto", "rumqttd"], port: int, data_dir: Path) -> None:
        """port: 0 for a free one. Raises FeedError where the program asked for is not there."""
        mosquitto = shutil.which("mosquitto") or shutil.which("mosquitto", path=_SBIN)
        if kind == "mosquitto" and mosquitto is None:
            raise FeedError('mqtt.embedded = "mosquitto", but it is not installed; install it, or write "auto"')
        self._mosquitto = mosquitto if kind != "rumqttd" else None
        self._asked_port = port
        self._dir = data_dir
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._watch: threading.Thread | None = None

    @property
    def kind(self) -> Literal["mosquitto", "rumqttd"]:
        """The program that it runs."""
        return "rumqttd" if self._mosquitto is None else "mosquitto"

    @property
    def keeps_order(self) -> bool:
        """Whether a client gets messages in the order sent across its subscriptions; rumqttd: only within each."""
        return self._mosquitto is not None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> int:
        """Start it and return its port once it answers.

        Raises FeedError where the port is taken or the broker does not start.
        """
        try:
            self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise FeedError(
                f"{self._dir}: the broker's folder cannot be made ({error.strerror}); mend its rights"
            ) from None
        # The threads of a broker that was just ended may hold its port a moment longer than it.
        patience = time.monotonic() + (_STOP_SECONDS if self._end_orphan() else 0.0)
        self._port = self._asked_port or _free_port()
        while not (free := _can_bind(self._port)) and time.monotonic() < patience:
            time.sleep(0.05)
        if not free:
            raise FeedError(
                f"port {self._port} on {HOST} is taken; set mqtt.port = 0 for a free one, "
                f'or mqtt.host = "{HOST}" to use the broker that listens there'
            )
        self._config_path.write_text(self._config(), encoding="utf-8")
        self._stopping.clear()
        self._launch()
        self._watch = threading.Thread(target=self._keep_up, name="broker-watch", daemon=True)
        self._watch.start()
        log.info("embedded broker %s listens on %s:%d", self.kind, HOST, self._port)
        return self._port

    def stop(self) -> None:
        """End it; twice does no harm."""
        self._stopping.set()
        if self._process is not None:
            _end(self._process)
        if self._watch is not None:
            self._watch.join()
            self._watch = None
        self._pid_path.unlink(missing_ok=True)
        self._process = None

    @property
    def _config_path(self) -> Path:
        return self._dir.resolve() / ("mosquitto.conf" if self._mosquitto else "rumqttd.toml")

    @property
    def _log_path(self) -> Path:
        return self._dir / "broker.log"

    @property
    def _pid_path(self) -> Path:
        return self._dir / "broker.pid"

    def _config(self) -> str:
        return _mosquitto_config(self._port, self._dir.resolve()) if self._mosquitto else _rumqttd_config(self._port)

    def _command(self) -> list[str]:
        if self._mosquitto is not None:
            return [self._mosquitto, "-c", str(self._config_path)]
        # rumqttd's tracing writes a line for every packet at level error.
        return [sys.executable, "-P", "-m", "iotcore", "--log-level", "CRITICAL", "--config", str(self._config_path)]

    def _launch(self) -> None:
        with self._log_path.open("wb") as output:
            process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self._process = process
        self._pid_path.write_text(str(process.pid), encoding="ascii")
        deadline = time.monotonic() + _START_SECONDS
        while not _listening(self._port):
            if process.poll() is not None or time.monotonic() > deadline:
                _end(process)
                said = self._log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                raise FeedError(
                    f"embedded broker {self.kind} does not start on {HOST}:{self._port} "
                    f"({said[0] if said else 'it says nothing'}); see {self._log_path}"
                )
            time.sleep(0.02)

    def _keep_up(self) -> None:
        """Waits for the broker to end, and starts it again unless it was meant to."""
        pause = _RESTART_SECONDS[0]
        while (process := self._process) is not None:
            code = process.wait()
            if self._stopping.wait(pause):
                return
            pause = min(2 * pause, _RESTART_SECONDS[1])
            log.error("embedded broker %s ended by itself (status %d); starting it again", self.kind, code)
            try:
                self._launch()
            except (FeedError, OSError) as error:
                log.error("%s", error)
            if self._stopping.is_set() and self._process is not None:  # stop() may have seen only the one before
                _end(self._process)

    def _end_orphan(self) -> bool:
        """End the broker that an earlier run left behind in this folder, if that process is really one."""
        try:
            pid = int(self._pid_path.read_text(encoding="ascii"))
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return False
        if os.fsencode(self._config_path) not in command.split(b"\0"):
            return False
        log.warning("ending the embedded broker that an earlier run left behind (process %d)", pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        while _alive(pid):
            if time.monotonic() > deadline:
                raise FeedUnavailable(f"the broker left behind (process {pid}) does not end; end it by hand")
            time.sleep(0.05)
        return True


def _mosquitto_config(port: int, folder: Path) -> str:
    lines = [
        f"listener {port} {HOST}",
        "allow_anonymous true",
        "persistence true",
        f"persistence_location {folder}/",
        "autosave_interval 60",
        "# Keep everything for a client that is away, and let it have many messages unacknowledged.",
        "max_queued_messages 0",
        "max_inflight_messages 65535",
        "set_tcp_nodelay true",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
    ]
    if os.geteuid() == 0:  # else Mosquitto changes to a user who may not write here
        lines.append("user root")
    return "\n".join(lines) + "\n"


def _rumqttd_config(port: int) -> str:
    # One listener speaks one version of MQTT: 5 here.
    return f"""id = 0
[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10
[v5.1]
name = "v5"
listen = {json.dumps(f"{HOST}:{port}")}
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 2097152
max_inflight_count = 20000
dynamic_filters = true
"""


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _alive(pid: int) -> bool:
    """Whether the process runs (one that has ended and is not yet collected does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((HOST, port)) == 0
