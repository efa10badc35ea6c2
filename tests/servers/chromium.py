"""Debian's Chromium, driven by playwright, and a dashboard served for it by waitress on a free loopback port."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from flask import Flask
from playwright.sync_api import Browser, Page, sync_playwright
from waitress.server import create_server

from tests.servers.programs import program

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser; nothing is downloaded."""
    path = program("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """The application behind a real server; yields its address."""
    server = create_server(app, host="127.0.0.1", port=0, threads=4)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.effective_port}"
    finally:
        server.close()
        thread.join(5)


@dataclass
class Watched:
    """A page and everything about it that should not have happened."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    """Console errors and warnings, exceptions, failed requests and requests to any other host."""


@contextmanager
def watched(browser: Browser, address: str, *, width: int, height: int, dark: bool = False) -> Iterator[Watched]:
    """A page of its own session that keeps what went wrong on it."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", base_url=address
    )
    page = context.new_page()
    seen = Watched(page)
    home = urlsplit(address).netloc
    page.on("console", lambda m: seen.complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on(
        "request",
        lambda r: (
            seen.complaints.append(f"left the host: {r.url}")
            if r.url.startswith(("http", "ws")) and urlsplit(r.url).netloc != home
            else None
        ),
    )
    page.on("response", lambda r: seen.complaints.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    try:
        yield seen
    finally:
        context.close()
