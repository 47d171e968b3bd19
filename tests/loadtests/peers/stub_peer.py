"""A peer for tests: answers every text with one label, by the standard library alone; with a child process of its own.

python stub_peer.py PORT LABEL [refuse|crash]
"""

from __future__ import annotations

import http.server
import json
import subprocess
import sys

PORT, LABEL, MODE = int(sys.argv[1]), sys.argv[2], (sys.argv[3:] or [""])[0]


class Handler(http.server.BaseHTTPRequestHandler):
    """POST {"text": ...} gives {"label": LABEL}."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, body = (503, b"full") if MODE == "refuse" else (200, json.dumps({"label": LABEL}).encode())
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name there
        """Nothing."""


if __name__ == "__main__":
    if MODE == "crash":
        print("no such model")
        sys.exit(3)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(f"child {child.pid}", flush=True)
    http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
