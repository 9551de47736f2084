"""onnxruntime-web in headless Chromium: the job folder behind a server of this machine, for as long as the
job runs.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mixport.records.errors import RuntimeUnavailableError
from mixport.validate.runtimes.folder_runtime import FolderRuntime
from mixport.validate.runtimes.names import CHROMIUM
from mixport.validate.runtimes.pins import ONNXRUNTIME_WEB, WEB_FILES, WEB_PAGE, WEB_RUNNER
from mixport.validate.runtimes.processes import find_program, started, tail
from mixport.validate.runtimes.protocol import ANSWER, MAX_DOCUMENT_BYTES, MAX_OUTPUT_BYTES, OUTPUTS
from mixport.validate.runtimes.web import need_dist

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

_TIMEOUT_S = 3600.0
_POLL_S = 0.2
_PIECE = 1 << 20
_TYPES: Mapping[str, str] = MappingProxyType(
    {".html": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm"}
)


def open_chromium(version: str | None = None) -> FolderRuntime:
    """The runtime in a browser, of the pinned version where None. Raises RuntimeUnavailableError."""
    name = CHROMIUM if version is None else f"{CHROMIUM}@{version}"
    browser = find_program(*BROWSERS)
    if browser is None:
        raise RuntimeUnavailableError(
            f"runtime {name} cannot run: no {BROWSERS[0]} on PATH", hint="apt-get install chromium"
        )
    dist = need_dist(name, version)
    return FolderRuntime(
        name=name,
        execute=lambda folder: _execute(name, browser, dist, folder),
        version=version or ONNXRUNTIME_WEB,
    )


def _execute(name: str, browser: str, dist: Path, folder: Path) -> None:
    what, hint = f"runtime {name}", f"{browser} --version"
    with _Server(folder, dist) as server, tempfile.TemporaryDirectory(prefix="mixport-browser-") as profile:
        thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), daemon=True)
        thread.start()
        try:
            with (
                tempfile.TemporaryFile() as log,
                started(_command(browser, profile, server.page), what=what, log=log) as process,
            ):
                deadline = time.monotonic() + _TIMEOUT_S
                while not server.done.wait(_POLL_S):
                    if process.poll() is not None:
                        raise RuntimeUnavailableError(
                            f"{what}: the browser ended before its answer: {tail(log)}", hint=hint
                        )
                    if time.monotonic() > deadline:
                        raise RuntimeUnavailableError(
                            f"{what}: the browser was stopped after {_TIMEOUT_S:g} s", hint=hint
                        )
        finally:
            server.shutdown()
            thread.join()
    if server.failure:
        raise RuntimeUnavailableError(f"{what}: the page failed: {server.failure}", hint=hint)


def _command(browser: str, profile: str, page: str) -> list[str]:
    flags = [
        "--headless=new",
        "--disable-gpu",
        "--no-first-run",
        "--disable-extensions",
        "--disable-dev-shm-usage",
    ]
    flags += [
        "--disable-background-networking",
        "--disable-component-update",
        "--no-default-browser-check",
        "--no-proxy-server",
    ]
    # Chromium refuses its sandbox to root; the page is ours and reaches nothing but this server.
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--no-sandbox")
    return [browser, *flags, f"--user-data-dir={profile}", page]


class _Server(ThreadingHTTPServer):
    """Serves one job below a path that cannot be guessed, since every process of this machine can reach the
    port.
    """

    daemon_threads = True

    def __init__(self, folder: Path, dist: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = f"/{secrets.token_urlsafe(24)}/"
        self.page = f"http://127.0.0.1:{self.server_port}{self.root}{WEB_PAGE.name}"
        self.files = {WEB_PAGE.name: WEB_PAGE, WEB_RUNNER.name: WEB_RUNNER}
        self.files.update({f"ort/{name}": dist / name for name in WEB_FILES})
        self.files.update({f"job/{path.name}": path for path in folder.iterdir()})
        self.folder = folder
        self.done = threading.Event()
        self.failure = ""
        (folder / OUTPUTS).touch()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks off is the browser's affair; without an answer the run fails anyway."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    timeout = 600

    def do_GET(self) -> None:
        path = (
            self.server.files.get(self.path.removeprefix(self.server.root))
            if self.path.startswith(self.server.root)
            else None
        )
        if path is None:
            self._reply(404)
            return
        size = path.stat().st_size
        start, stop = _range(self.headers.get("Range"), size)
        self.send_response(206 if self.headers.get("Range") else 200)
        self.send_header("Content-Type", _TYPES.get(path.suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        with path.open("rb") as file:
            file.seek(start)
            while start < stop:
                piece = file.read(min(_PIECE, stop - start))
                self.wfile.write(piece)
                start += len(piece)

    def do_POST(self) -> None:
        name = self.path.removeprefix(self.server.root) if self.path.startswith(self.server.root) else ""
        length = int(self.headers.get("Content-Length") or -1)
        outputs = self.server.folder / OUTPUTS
        most = {
            "outputs": MAX_OUTPUT_BYTES - outputs.stat().st_size,
            "answer": MAX_DOCUMENT_BYTES,
            "failed": 1 << 16,
        }.get(name, -1)
        if not 0 <= length <= most:
            self.close_connection = True
            self._reply(404 if most < 0 else 413)
            return
        if name == "failed":
            text = self.rfile.read(length).decode("utf-8", "replace")
            self.server.failure = "".join(c if c.isprintable() else " " for c in text)[:2000] or "no message"
        else:
            with (outputs if name == "outputs" else self.server.folder / ANSWER).open("ab") as file:
                while length > 0 and (piece := self.rfile.read(min(_PIECE, length))):
                    file.write(piece)
                    length -= len(piece)
        self._reply(200)
        if name != "outputs":
            self.server.done.set()

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the console is the only place that writes."""

    def _reply(self, code: int) -> None:
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _range(header: str | None, size: int) -> tuple[int, int]:
    """First byte and the byte after the last of `bytes=A-B`; the whole file where the header says nothing
    else.
    """
    first, _, last = (header or "").removeprefix("bytes=").partition("-")
    if not first.isdecimal() or not last.isdecimal():
        return 0, size
    return min(int(first), size), min(int(last) + 1, size)
