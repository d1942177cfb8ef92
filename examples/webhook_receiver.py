"""Receives the ends of jobs, accepts only signed events, and handles each event once.

    TOKENSPOOL_WEBHOOK_SECRET=whsec_… python examples/webhook_receiver.py 8090

The secret is that of GET /v1/webhooks/secret. To try it on one machine, start tokenspool with
TOKENSPOOL_WEBHOOK_ALLOW_NETWORKS=127.0.0.0/8, since internal addresses are refused otherwise, and submit a job with
{"job": {"webhook": {"url": "http://127.0.0.1:8090/"}}}. Needs `standardwebhooks`.
"""

import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

MAX_BODY_BYTES = 64 << 20
WEBHOOK = Webhook(os.environ["TOKENSPOOL_WEBHOOK_SECRET"])
HANDLED: set[str] = set()  # in your own application: a unique column, written together with the event's effect


class Receiver(BaseHTTPRequestHandler):
    timeout = 30

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        if length > MAX_BODY_BYTES:
            self.send_receipt(413)
            return
        body = self.rfile.read(length)
        try:
            event = WEBHOOK.verify(body, {name.lower(): value for name, value in self.headers.items()})
        except WebhookVerificationError:
            self.send_receipt(401)
            return
        self.send_receipt(204)  # within 15 s, or the event is sent again: do longer work after it
        event_id = self.headers["webhook-id"]
        if event_id not in HANDLED:
            HANDLED.add(event_id)
            print(event["type"], event["data"]["url"], flush=True)

    def send_receipt(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Prints only events."""


def main(port: int) -> None:
    with ThreadingHTTPServer(("127.0.0.1", port), Receiver) as server:
        print(f"listening on http://127.0.0.1:{server.server_port}/", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]))
