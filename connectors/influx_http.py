"""What is said to an InfluxDB over HTTP, through influxdb-client's ApiClient, and its refusals in our own words."""

from __future__ import annotations

import gzip
import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import orjson
from influxdb_client.client.influxdb_client import InfluxDBClient
from influxdb_client.rest import ApiException
from influxdb_client.service.write_service import WriteService
from urllib3.exceptions import HTTPError

from pm.errors import StoreError, StoreUnavailable

Unit = Literal["us", "ns"]
"""What the times of lines count."""

_LINES_REFUSED = re.compile(
    r"partial write|unable to parse|parsing failed|line protocol|unprocessable|beyond retention"
)
_DROPPED = re.compile(r"dropped=(\d+)")
_TOO_MANY_FILES = re.compile(r"exceed file limit|query-file-limit")
_TOO_LARGE = 413


class Refusal(Exception):
    """The server will not take some lines of a body for what they hold; it may have stored the others.

    lines: why, by place in the body (from 0), where the server names every one. dropped: how many, where it says.
    """

    def __init__(self, message: str, *, lines: Mapping[int, str] | None = None, dropped: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.lines = lines or {}
        self.dropped = dropped


class TooManyFiles(StoreError):
    """A question touches more files than the server opens for one; it must be put for a shorter time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, whatever the status says."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Connection:
    """One server. Raises StoreUnavailable where trying again can help, StoreError where it cannot."""

    def __init__(
        self, *, url: str, org: str, token: str, verify_tls: bool, ca_file: str, timeout: timedelta, pack: bool | None
    ) -> None:
        """pack: gzip what is written; None packs it where the server is not on this machine."""
        self.url = url
        self.org = org
        self.client: Any = InfluxDBClient(
            url=url,
            token=token,
            org=org,
            timeout=int(timeout.total_seconds() * 1000),
            verify_ssl=verify_tls,
            ssl_ca_cert=ca_file or None,
        )
        self._writer: Any = WriteService(self.client.api_client)  # type: ignore[no-untyped-call]
        self._pack = not _on_this_machine(url) if pack is None else pack

    def close(self) -> None:
        self.client.close()

    def write(self, bucket: str, body: bytes, unit: Unit) -> None:
        """Lines to the write address of versions 1.8 and 2. Raises Refusal."""
        with self._lines_told():
            self._writer.post_write(
                org=self.org,
                bucket=bucket,
                body=self._packed(body),
                precision=unit,
                content_type="text/plain; charset=utf-8",
                **({"content_encoding": "gzip"} if self._pack else {}),
            )

    def post_lines(self, path: str, query: Sequence[tuple[str, str]], body: bytes) -> None:
        """Lines to another write address. Raises Refusal."""
        headers = {"Content-Type": "text/plain; charset=utf-8"}
        if self._pack:
            headers["Content-Encoding"] = "gzip"
        with self._lines_told():
            self._call("POST", path, query=query, body=self._packed(body), headers=headers)

    def request(
        self, method: str, path: str, query: Sequence[tuple[str, str]] = (), payload: Mapping[str, Any] | None = None
    ) -> Answer:
        """Anything else, with a JSON payload; refusals come back as answers with their status."""
        try:
            return self._call(method, path, query=query, body=payload, headers={"Accept": "application/json"})
        except ApiException as error:
            if not error.status or error.status == 429 or error.status >= 500:
                raise self.told(error) from error
            return Answer(error.status, _bytes(error.body), dict(error.headers or {}))
        except HTTPError as error:
            raise self._away(error) from error

    def ask(self, query: str, *, accept: str, parameters: Sequence[tuple[str, str]], in_address: bool) -> bytes:
        """The answer to a question in InfluxQL. in_address: the question goes with the address and not as a form.

        Raises TooManyFiles where the server says so.
        """
        try:
            if in_address:
                whole = [*parameters, ("q", query)]
                return self._call("GET", "/query", query=whole, headers={"Accept": accept}).body
            form = {"Accept": accept, "Content-Type": "application/x-www-form-urlencoded"}
            return self._call("POST", "/query", query=parameters, headers=form, form=[("q", query)]).body
        except ApiException as error:
            if "database not found" in _message(error):
                return b""  # nothing was written yet
            raise self.told(error) from error
        except HTTPError as error:
            raise self._away(error) from error

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: object = None,
        headers: Mapping[str, str],
        form: Sequence[tuple[str, str]] | None = None,
    ) -> Answer:
        response = self.client.api_client.call_api(
            path,
            method,
            query_params=list(query),
            header_params=dict(headers),
            body=body,
            post_params=form,
            _preload_content=False,
            _return_http_data_only=True,
        )
        try:
            return Answer(response.status, response.read(), dict(response.headers))
        finally:
            response.release_conn()

    def _packed(self, body: bytes) -> bytes:
        # The client itself would pack at level 9, which takes several times as long and saves little more.
        return gzip.compress(body, compresslevel=1, mtime=0) if self._pack else body

    @contextmanager
    def _lines_told(self) -> Iterator[None]:
        try:
            yield
        except ApiException as error:
            message = _message(error)
            if error.status == _TOO_LARGE or (error.status in (400, 422) and _LINES_REFUSED.search(message)):
                dropped = _DROPPED.search(message)
                count = int(dropped[1]) if dropped else None
                raise Refusal(message, lines=_named_lines(_bytes(error.body)), dropped=count) from error
            if error.status == 404:
                raise  # the bucket is missing: the caller may make it
            raise self.told(error) from error
        except HTTPError as error:
            raise self._away(error) from error

    def _away(self, error: HTTPError) -> StoreUnavailable:
        return StoreUnavailable(
            f"InfluxDB at {self.url} cannot be reached ({type(error).__name__}); start it or mend store.url"
        )

    def told(self, error: ApiException) -> StoreError:
        """The StoreError that says what a refusal means, and whether trying again can help. Never shows the token."""
        message = _message(error)
        where = f"InfluxDB at {self.url}"
        if _TOO_MANY_FILES.search(message):
            return TooManyFiles(f"{where}: {message}")
        match error.status:
            case 0:
                return StoreError(f"{where}: TLS failed ({message}); mend store.ca_file, or the server's certificate")
            case 401 | 403:
                return StoreError(
                    f"{where} refuses the token ({message}); mend store.token and its rights on the bucket"
                )
            case 404:
                return StoreError(f"{where}: {message}; mend store.url and store.bucket")
            case 408 | 429:
                wait = _retry_after(error)
                asked = f", for {wait:g} s" if wait else ""
                return StoreUnavailable(f"{where} asks to slow down{asked} ({message})", wait=wait)
            case int(status) if status >= 500:
                return StoreUnavailable(f"{where} fails with status {status} ({message})", wait=_retry_after(error))
        return StoreError(f"{where} refuses with status {error.status}: {message}")


def _on_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bytes(body: object) -> bytes:
    return body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else b""


def _retry_after(error: ApiException) -> float:
    """Seconds of the Retry-After header: a number, or a date less the server's own; 0 without one."""
    headers: Mapping[str, str] = error.headers or {}
    value = headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - parsedate_to_datetime(headers["Date"])).total_seconds())
    except (KeyError, TypeError, ValueError):
        return 0.0


def _message(error: ApiException) -> str:
    """The server's own words, short and on one line."""
    body = _bytes(error.body)
    try:
        answer = orjson.loads(body)
        text = str(answer.get("error") or answer.get("message") or "")
        lines = _named_lines(body)
        if lines:
            text += f": {next(iter(lines.values()))}"
    except (orjson.JSONDecodeError, AttributeError):
        text = "" if body.lstrip().startswith(b"<") else body.decode(errors="replace")  # a proxy's page says less
    return " ".join((text or str(error.reason or "no reason given")).split())[:400]


def _named_lines(body: bytes) -> dict[int, str]:
    """The lines that version 3 refuses, by place (from 0); {} in any other answer."""
    try:
        told = orjson.loads(body).get("data")
    except (orjson.JSONDecodeError, AttributeError):
        return {}
    named = told if isinstance(told, list) else [told]
    return {
        part["line_number"] - 1: str(part.get("error_message", ""))
        for part in named
        if isinstance(part, dict) and isinstance(part.get("line_number"), int) and part["line_number"] > 0
    }
