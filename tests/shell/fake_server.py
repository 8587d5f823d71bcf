#!/usr/bin/env python3
"""Both servers of scripts/bench/servers.py, without a model, to test the measuring.

Started as `tally serve …` it tells how many KV blocks of BLOCK_BYTES its memory holds; as
llama-server it has none. FAKE_LOG is a folder where each start leaves its arguments; FAKE_FAULT is
`dies`, `refuses` or `short`. Standard library only.
"""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BLOCK_BYTES = 1_000
PACE_SECONDS = 0.0005


def option(name, default=None):
    """The value after an option."""
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


class Server(BaseHTTPRequestHandler):
    """What the load generator and the measuring ask."""

    def log_message(self, *_):
        """Says nothing."""

    def do_GET(self):
        """Health and metrics."""
        blocks = int(option("--engine-kv-memory-bytes", "0")) // BLOCK_BYTES
        self.answer(200, f"kv_block_count_free {blocks}\n")

    def do_POST(self):
        """A stream of as many texts as were asked for, or the fault."""
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert request["ignore_eos"] and request["stream_options"] == {"include_usage": True}
        fault = os.environ.get("FAKE_FAULT")
        if fault == "refuses":
            self.answer(400, "no")
            return
        count = request["max_tokens"] - (fault == "short")
        self.send_response(200)
        self.end_headers()
        for _ in range(count):
            time.sleep(PACE_SECONDS)
            self.event({"choices": [{"delta": {"content": "a "}}]})
        self.event({"choices": [], "usage": {"completion_tokens": count, "prompt_tokens": 1}})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, value):
        """One event of a stream."""
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())

    def answer(self, status, text):
        """A whole answer."""
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


def main():
    log = Path(os.environ["FAKE_LOG"])
    (log / f"{time.monotonic_ns()}").write_text(json.dumps(sys.argv))
    if os.environ.get("FAKE_FAULT") == "dies":
        sys.exit("no such model")
    port = option("--port") or option("--listen").rsplit(":", 1)[1]
    # Clients come all at once; the default of 5 makes the kernel drop some.
    ThreadingHTTPServer.request_queue_size = 128
    ThreadingHTTPServer(("127.0.0.1", int(port)), Server).serve_forever()


if __name__ == "__main__":
    main()
