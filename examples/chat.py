"""A web chat for two tenants: the keys stay here, and each browser follows its answer at tokenspool itself.

    TOKENSPOOL_CORS_ORIGINS=http://127.0.0.1:8080 make run          # in another terminal
    python examples/chat.py 8080                                    # then open http://127.0.0.1:8080/acme/ann

The path names the tenant and the user: in your own application they come from the session. Reads TOKENSPOOL_URL, and
with TOKENSPOOL_AUTH=keys a key for each tenant: CHAT_KEYS='{"acme": "ts_live_…", "globex": "ts_live_…"}'. Needs `httpx2`.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2

URL = os.environ.get("TOKENSPOOL_URL", "http://127.0.0.1:8000")
KEYS = json.loads(os.environ.get("CHAT_KEYS", '{"acme": "none", "globex": "none"}'))
TENANTS = {
    name: httpx2.Client(base_url=URL, headers={"Authorization": f"Bearer {key}", "X-Tenant": name}, timeout=10)
    for name, key in KEYS.items()
}


class Chat(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.respond(200, "text/html; charset=utf-8", Path(__file__).with_name("chat.html").read_bytes())

    def do_POST(self) -> None:
        """A turn: {"key": …, "messages": […]}. Repeated, it finds its answer again."""
        turn = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        _, tenant, user = self.path.split("/")
        try:
            status, body = ask(TENANTS[tenant], user, turn)
        except httpx2.TransportError:
            status, body = 503, {"detail": "tokenspool cannot be reached."}
        self.respond(status, "application/json", json.dumps(body).encode())

    def respond(self, status: int, media_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Prints nothing of the requests."""


def ask(tenant: httpx2.Client, user: str, turn: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The URL at which the browser follows the turn's answer, or the problem that tokenspool has with it."""
    body = {"max_tokens": 1024, "messages": turn["messages"], "job": {"end_user": user}}
    # The user is part of the key, so that nobody finds another's answer. The same turn is the same job.
    job = tenant.post("/v1/jobs", json=body, headers={"Idempotency-Key": f"{user}/{turn['key']}"})
    if job.is_error:
        return job.status_code, job.json()
    token = tenant.post(f"{job.headers['Location']}/follow-token", json={"cancel": True})
    return token.status_code, token.json() if token.is_error else {"url": URL + token.json()["url"]}


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Chat)
    print(f"open http://127.0.0.1:{server.server_port}/acme/ann", flush=True)
    server.serve_forever()
