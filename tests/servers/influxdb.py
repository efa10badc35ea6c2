"""InfluxDB for tests: Debian's real 1.6.7, behind an nginx that gives it the write address of later versions.

1.8, 2.x and 3 take writes on `/api/v2/write?bucket=B&precision=us`; 1.6 only on `/write?db=B&precision=u`. The nginx
maps the one to the other and passes everything else on. It belongs to the tests; a plant runs 1.8 or later without it.
"""

from __future__ import annotations

import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.programs import free_port, listening, program, stop, wait_until

_INFLUXD = """
reporting-disabled = true
bind-address = "127.0.0.1:{rpc}"
[meta]
  dir = "{folder}/meta"
  logging-enabled = false
[data]
  dir = "{folder}/data"
  wal-dir = "{folder}/wal"
  index-version = "tsi1"
  query-log-enabled = false
  max-series-per-database = 0
[http]
  bind-address = "127.0.0.1:{http}"
  log-enabled = false
  auth-enabled = {auth}
  max-body-size = 25000000
[monitor]
  store-enabled = false
[subscriber]
  enabled = false
[continuous_queries]
  enabled = false
[logging]
  level = "error"
"""

_NGINX = """
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 32m;
    client_body_buffer_size 32m;
    proxy_buffering off;  # its workers may be another user, who cannot write under {folder}
    map $arg_precision $influx_precision {{ default $arg_precision; us u; ns n; }}
    server {{
        listen 127.0.0.1:{port}{tls};
        location = /api/v2/write {{
            rewrite ^ /write?db=$arg_bucket&precision=$influx_precision? break;
            proxy_pass http://127.0.0.1:{http};
        }}
        location / {{
            proxy_pass http://127.0.0.1:{http};
        }}
    }}
}}
"""


@dataclass
class InfluxServer:
    """A running InfluxDB: where it is, and how to take it away and bring it back."""

    url: str
    folder: Path
    http_port: int
    process: subprocess.Popen[bytes]

    def restart(self) -> None:
        self.process = _start_influxd(self.folder, self.http_port)

    def query(self, text: str) -> bytes:
        """What the server itself answers, without any client of ours."""
        request = urllib.request.Request(f"{self.url}/query", urllib.parse.urlencode({"q": text}).encode())
        with urllib.request.urlopen(request) as answer:
            body: bytes = answer.read()
        return body

    def stop(self) -> None:
        stop(self.process)


@contextmanager
def influxdb(folder: Path, *, auth: bool = False, tls: tuple[Path, Path] | None = None) -> Iterator[InfluxServer]:
    """InfluxDB and its nginx with everything under `folder`; `tls` is a certificate and its key."""
    nginx = program("nginx", "nginx-light")
    http, port = free_port(), free_port()
    config = _INFLUXD.format(folder=folder, rpc=free_port(), http=http, auth=str(auth).lower())
    (folder / "influxdb.conf").write_text(config)
    secured = f" ssl;\n        ssl_certificate {tls[0]};\n        ssl_certificate_key {tls[1]}" if tls else ""
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, port=port, http=http, tls=secured))
    server = InfluxServer(
        url=f"{'https' if tls else 'http'}://127.0.0.1:{port}",
        folder=folder,
        http_port=http,
        process=_start_influxd(folder, http),
    )
    try:
        proxy = subprocess.Popen(
            [nginx, "-c", str(folder / "nginx.conf"), "-p", str(folder), "-e", str(folder / "nginx-error.log")]
        )
        try:
            wait_until(lambda: listening(port), "nginx")
            yield server
        finally:
            stop(proxy)
    finally:
        server.stop()


def _start_influxd(folder: Path, port: int) -> subprocess.Popen[bytes]:
    with (folder / "influxd.log").open("ab") as output:
        process = subprocess.Popen(
            [program("influxd", "influxdb"), "-config", str(folder / "influxdb.conf")],
            stdout=output,
            stderr=output,
        )
    wait_until(lambda: listening(port), "influxd")
    return process
