"""A real Mosquitto on a free loopback port, with what a test asks for: persistence, a password, TLS."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pm.config import MqttSection
from tests.servers.programs import free_port, listening, program, stop, wait_until

USER = "plant"
PASSWORD = "correct horse"


class Mosquitto:
    """One broker: it may be stopped, killed and started again on the same port."""

    def __init__(
        self,
        folder: Path,
        *,
        password: bool = False,
        tls: bool = False,
        client_certificates: bool = False,
        max_inflight: int = 20_000,
        max_packet: int | None = None,
        access: str = "",
        saves_at_once: bool = False,
    ) -> None:
        """access: lines of an access list; empty for none. client_certificates: with TLS, demanded of every client.

        saves_at_once: to disk after every change, where a Mosquitto as installed does so every half hour.
        """
        self.folder = folder
        self.port = free_port()
        self._program = program("mosquitto", "mosquitto")
        self._process: subprocess.Popen[bytes] | None = None
        lines = [
            f"listener {self.port} 127.0.0.1",
            f"allow_anonymous {'false' if password else 'true'}",
            "persistence true",
            f"persistence_location {folder}/",
            "max_queued_messages 0",
            f"max_inflight_messages {max_inflight}",
            "log_dest none",
        ]
        if os.geteuid() == 0:
            lines.append("user root")
        if saves_at_once:
            lines += ["autosave_on_changes true", "autosave_interval 1"]
        if max_packet is not None:
            lines.append(f"max_packet_size {max_packet}")
        if password:
            lines.append(f"password_file {self._passwords()}")
        if access:
            (folder / "access").write_text(access + "\n")
            (folder / "access").chmod(0o600)
            lines.append(f"acl_file {folder / 'access'}")
        if tls:
            make_certificates(folder)
            lines += [f"certfile {folder / 'server.crt'}", f"keyfile {folder / 'server.key'}"]
        if client_certificates:
            lines += [f"cafile {folder / 'ca.crt'}", "require_certificate true"]
        self._config = folder / "mosquitto.conf"
        self._config.write_text("\n".join(lines) + "\n")

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.crt"

    def section(self, **changes: object) -> MqttSection:
        """The configuration that reaches it."""
        return MqttSection.model_validate({"host": "127.0.0.1", "port": self.port, **changes})

    def start(self) -> None:
        self._process = subprocess.Popen(
            [self._program, "-c", str(self._config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(lambda: listening(self.port), "mosquitto")

    def stop(self) -> None:
        if self._process is not None:
            stop(self._process)

    def kill(self) -> None:
        """End it as a power cut does: what it had not saved, sessions included, is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        """Nothing comes from it and nothing is taken, and yet every connection stands, as with a dead network."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def _passwords(self) -> Path:
        path = self.folder / "passwords"
        path.touch(mode=0o600)
        subprocess.run([program("mosquitto_passwd", "mosquitto"), "-b", str(path), USER, PASSWORD], check=True)
        return path


@contextlib.contextmanager
def mosquitto(folder: Path, **options: object) -> Iterator[Mosquitto]:
    broker = Mosquitto(folder, **options)  # type: ignore[arg-type]
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


def make_certificates(folder: Path, host: str = "localhost") -> None:
    """An authority of its own (ca.crt) and a server certificate for `host`, by openssl."""
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    _openssl(folder, "req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2",
             "-subj", "/CN=Test authority", "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    make_certificate(folder, "server", host)


def make_certificate(folder: Path, name: str, host: str = "localhost", *, days: int = 2) -> None:
    """A certificate for `host` by the authority in the folder: `name`.crt and `name`.key; expired with days < 0."""
    _openssl(folder, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={host}")  # fmt: skip
    (folder / f"{name}.ext").write_text(f"subjectAltName=DNS:{host}\n")
    _openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
             "-days", str(days), "-out", f"{name}.crt", "-extfile", f"{name}.ext")  # fmt: skip


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run([program("openssl", "openssl"), *arguments], cwd=folder, check=True, capture_output=True)
