"""Serves page.html, and forwards /v1/… to tokenspool: a browser needs both from one origin, and the key stays here.

    python examples/serve_page.py 8080      # then open http://127.0.0.1:8080

Reads TOKENSPOOL_URL and TOKENSPOOL_API_KEY. In your own application this is your web server.
"""

import http.client
import os
import sys
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

TOKENSPOOL = urlsplit(os.environ.get("TOKENSPOOL_URL", "http://127.0.0.1:8000")).netloc
FORWARDED = ("Content-Type", "Accept", "Last-Event-ID", "Idempotency-Key")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if not self.path.startswith("/v1/"):
            page = Path(__file__).with_name("page.html").read_bytes()
            self.respond(200, "text/html; charset=utf-8", [page])
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: self.headers[name] for name in FORWARDED if name in self.headers}
        headers["Authorization"] = f"Bearer {os.environ.get('TOKENSPOOL_API_KEY', 'none')}"
        upstream = http.client.HTTPConnection(TOKENSPOOL, timeout=60)
        try:
            upstream.request(self.command, self.path, body or None, headers)
            response = upstream.getresponse()
            media_type = response.getheader("Content-Type", "text/plain")
            self.respond(response.status, media_type, iter(lambda: response.read1(65536), b""))
        finally:
            upstream.close()

    do_POST = do_GET  # noqa: N815 - the base class's own name

    def respond(self, status: int, media_type: str, pieces: Iterable[bytes]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(piece)
            self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    print(f"open http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
