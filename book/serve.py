"""Serve the built book on this machine. ``python book/serve.py --help``."""

from __future__ import annotations

import argparse
import re
import sys
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

SITE = Path(__file__).resolve().parents[1] / "_build" / "html"
# Files whose address changes with their content; everything else is asked for again
FIXED = re.compile(r"/_static/(vendor/[^/]+-\d[^/]*/|gpuedu-[^/]+\.zip$)")


class Handler(SimpleHTTPRequestHandler):
    """A static host as the book wants it: types, caching, and the site's own page for what is missing."""

    protocol_version = "HTTP/1.1"  # the browser keeps its connections
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".svg": "image/svg+xml",
        ".woff2": "font/woff2",
        ".whl": "application/zip",
    }

    def end_headers(self) -> None:
        """Say for how long the browser may keep the file."""
        fixed = FIXED.search(urlsplit(self.path).path)
        self.send_header("Cache-Control", "max-age=31536000, immutable" if fixed else "no-cache")
        super().end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """For a missing file, the site's 404 page."""
        page = Path(self.directory, "404.html")
        if code != HTTPStatus.NOT_FOUND or not page.is_file():
            return super().send_error(code, message, explain)
        body = page.read_bytes()
        self.send_response(code)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing for each request."""


class Server(ThreadingHTTPServer):
    """Takes it calmly when a browser leaves in the middle of an answer."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Report what is wrong with the server, not that the browser has gone."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def server(site: Path = SITE, port: int = 0) -> Server:
    """A server of ``site`` on the loopback address; on any free port if ``port`` is 0 or taken."""
    handler = partial(Handler, directory=str(site))
    try:
        return Server(("127.0.0.1", port), handler)
    except OSError:
        return Server(("127.0.0.1", 0), handler)


def main() -> int:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="Serve the built book on 127.0.0.1.")
    parser.add_argument("--site", type=Path, default=SITE, help="folder of the built site")
    parser.add_argument("--port", type=int, default=8000, help="port (default 8000, or a free one)")
    options = parser.parse_args()
    if not (options.site / "index.html").is_file():
        print(f"{options.site} holds no book: run `make html` first", file=sys.stderr)
        return 1
    with server(options.site, options.port) as host:
        print(f"The book is at http://127.0.0.1:{host.server_port}/ (stop with Ctrl+C)", flush=True)
        try:
            host.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
