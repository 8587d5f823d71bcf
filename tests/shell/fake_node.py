"""A node and a chain in one small server, honest or with one fault, to test the test.

It stands in for both ends of `test_token_tracking.py`: REST, WebSocket and JSON-RPC on one port.
Never a model of the real node: it makes up tokens and knows just what the script asks. Standard
library only.
"""

import base64
import hashlib
import json
import random
import select
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MARKETPLACE = "0x1273e6358aa52bb5b160c34bf2e617b745e4a944"
TOPIC_PROOF = "0xb4c5c92500782d044d3f3d15b5bdc795913a997874aa9ba898f5b24754d4b7f8"
WEBSOCKET_KEY = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
PACE_SECONDS = 0.002

# The fault, and what the difference it makes must say. None is honest; what each of the others
# does is where its name stands in the code below.
FAULTS = {
    None: "all agree",
    "records one token too many": "clients saw",
    "loses what a whole body delivered": "clients saw",
    "forgets at session_init": "something reset the count",
    # Either as a fall or, where the answer made up for it, as too few.
    "starts again for the form with n": "recorded",
    "bills the whole answer after a drop": "clients saw",
    "bills the whole answer after a cancel": "clients saw",
    "pads a claim up to the next hundred": "tokens on chain",
    "claims under the minimum": "under 100",
    "claims the running total": "tokens on chain",
    "reports another amount than it claimed": "the node reports",
    "its claim failed on chain": "failed on chain",
    "never claims": "wanted all but a tail under 100",
    "does not echo ids": "answered with",
    "its end miscounts": "stream_end says",
}


class Job:
    """One session's ledger and its state on chain."""

    def __init__(self):
        self.recorded = 0
        self.used = 0
        self.claims = []


class State:
    """All jobs, and the fault."""

    def __init__(self, fault):
        self.fault = fault
        self.jobs = {}
        self.lock = threading.Lock()

    def job(self, number):
        """The job, made on first sight."""
        with self.lock:
            return self.jobs.setdefault(number, Job())

    def record(self, number, tokens, session_id=""):
        """Adds delivered tokens and claims what is due."""
        job = self.job(number)
        with self.lock:
            if self.fault == "starts again for the form with n" and str(session_id).endswith("n"):
                job.recorded = job.used
            if self.fault == "records one token too many":
                tokens += 1
            job.recorded += tokens
            self.claim(job)

    def claim(self, job):
        """Claims all that is unclaimed, from 100 tokens on."""
        due, least = job.recorded - job.used, 100
        if self.fault == "claims under the minimum":
            least = 1
        if due < least or self.fault == "never claims":
            return
        if self.fault == "pads a claim up to the next hundred":
            due += -due % 100
        if self.fault == "claims the running total":
            due = job.recorded
        job.used += due
        job.claims.append((due, f"0x{random.getrandbits(256):064x}"))


def job_number(session_id):
    """`139`, `"139"` and `"139n"` are job 139."""
    return int(str(session_id).removesuffix("n"))


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    # Else tokens wait in the kernel: written, billed, and unseen when the client drops.
    disable_nagle_algorithm = True

    def log_message(self, *_):
        """Quiet."""

    @property
    def state(self):
        return self.server.state

    def answer(self, body, status=200):
        """A JSON answer."""
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):  # noqa: N802  (the base class names it)
        """Models, sessions and the WebSocket."""
        if self.path == "/v1/models":
            return self.answer({"object": "list", "data": [{"id": "fake"}]})
        if self.path == "/v1/ws":
            return WebSocketSide(self).serve()
        job = self.state.job(int(self.path.rpartition("/")[2]))
        lie = 1 if self.state.fault == "reports another amount than it claimed" else 0
        claims = [{"tokens": tokens + lie, "tx_hash": tx} for tokens, tx in job.claims]
        return self.answer({"tokens_recorded": job.recorded, "claims": claims})

    def do_POST(self):  # noqa: N802
        """Inference and JSON-RPC."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/inference":
            return self.inference(body)
        result = Rpc(self.state).call(body["method"], body["params"])
        return self.answer({"jsonrpc": "2.0", "id": body["id"], "result": result})

    def inference(self, body):
        """An answer in one body or as server-sent events."""
        number, tokens = job_number(body["session_id"]), random.randint(20, body["max_tokens"])
        if not body["stream"]:
            if self.state.fault != "loses what a whole body delivered":
                self.state.record(number, tokens, body["session_id"])
            return self.answer({"content": "a" * tokens, **final(tokens)})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        sent = 0
        for sent in range(1, tokens + 1):
            # A client that is gone makes the socket readable.
            if select.select([self.connection], [], [], PACE_SECONDS)[0]:
                break
            self.event({"content": "a", "usage": {"completion_tokens": sent}})
        whole = tokens if self.state.fault == "bills the whole answer after a drop" else sent
        self.state.record(number, whole, body["session_id"])
        if sent == tokens:
            self.event(final(tokens))
            self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True
        return None

    def event(self, body):
        """One frame; a client that is gone is noticed before the next."""
        try:
            self.wfile.write(f"data: {json.dumps(body)}\n\n".encode())
        except OSError:
            pass


def final(tokens):
    """The figures at the end of an answer."""
    usage = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": tokens + 5}
    return {"tokens_used": tokens, "finish_reason": "stop", "usage": usage}


class Rpc:
    """The chain."""

    def __init__(self, state):
        self.state = state

    def call(self, method, params):
        """The result of one call."""
        return getattr(self, method)(*params)

    def eth_chainId(self):  # noqa: N802
        return "0x7a69"

    def eth_call(self, call, _tag):
        """`sessionJobs(job)`: sixteen words, tokensUsed is the eighth."""
        words = [0] * 16
        words[7] = self.state.job(int(call["data"][10:], 16)).used
        return "0x" + "".join(f"{word:064x}" for word in words)

    def eth_getLogs(self, query):  # noqa: N802
        """ProofSubmitted of one job."""
        topic = query["topics"][1]
        claims = self.state.job(int(topic, 16)).claims
        return [{"topics": [TOPIC_PROOF, topic], "data": f"0x{tokens:064x}{0:064x}",
                 "transactionHash": tx} for tokens, tx in claims]

    def eth_getTransactionReceipt(self, _hash):  # noqa: N802
        failed = self.state.fault == "its claim failed on chain"
        return {"status": "0x0" if failed else "0x1", "logs": []}


class Gone(Exception):
    """The client closed or broke the connection."""


class WebSocketSide:
    """The WebSocket protocol, as much as the script speaks."""

    def __init__(self, handler):
        self.handler, self.state, self.raw = handler, handler.state, handler.connection

    def serve(self):
        """Handshake, then messages until the client is gone."""
        key = self.handler.headers["Sec-WebSocket-Key"] + WEBSOCKET_KEY
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.handler.send_response(101)
        self.handler.send_header("Upgrade", "websocket")
        self.handler.send_header("Connection", "Upgrade")
        self.handler.send_header("Sec-WebSocket-Accept", accept)
        self.handler.end_headers()
        self.handler.close_connection = True
        try:
            self.send({"type": "connected", "message": "fake"})
            while True:
                self.message(self.receive())
        except (Gone, OSError):
            pass

    def message(self, message):
        """Answers one message."""
        if message["type"] == "session_init":
            if self.state.fault == "forgets at session_init":
                self.state.job(message["jobId"]).recorded = 0
            self.send(self.echo({"type": "session_init_ack", "status": "success"}, message))
        elif message["type"] == "prompt":
            self.stream(message)

    def echo(self, answer, message):
        """The answer under the client's id."""
        if self.state.fault == "does not echo ids":
            return answer
        return {**answer, "id": message["id"]}

    def stream(self, message):
        """Chunks of one token until the end, a cancel or a drop."""
        tokens = random.randint(20, message["request"]["max_tokens"])
        sent, reason, gone = 0, "stop", None
        try:
            while sent < tokens and reason == "stop":
                self.send(self.echo({"type": "stream_chunk", "content": "a", "tokens": 1}, message))
                sent += 1
                if select.select([self.raw], [], [], PACE_SECONDS)[0]:
                    reason = "cancelled" if self.receive()["type"] == "stream_cancel" else reason
        except (Gone, OSError) as why:
            gone = why
        fault = self.state.fault
        whole = (gone and fault == "bills the whole answer after a drop") or (
            reason == "cancelled" and fault == "bills the whole answer after a cancel")
        self.state.record(message["jobId"], tokens if whole else sent)
        if gone:
            raise Gone
        lie = 1 if fault == "its end miscounts" else 0
        end = {**final(sent + lie), "type": "stream_end", "reason": reason}
        self.send(self.echo({**end, "finish_reason": reason}, message))

    def send(self, message):
        """One text frame."""
        self.frame(0x81, json.dumps(message).encode())

    def frame(self, first, payload):
        """One unmasked frame."""
        size = len(payload)
        head = struct.pack("!BB", first, size) if size < 126 else (
            struct.pack("!BBH", first, 126, size))
        self.raw.sendall(head + payload)

    def receive(self):
        """The next text message; pings are answered, a close ends it."""
        while True:
            first, size = struct.unpack("!BB", self.exactly(2))
            size &= 0x7F
            if size == 126:
                size = struct.unpack("!H", self.exactly(2))[0]
            mask, data = self.exactly(4), self.exactly(size)
            data = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
            if first & 0x0F == 1:
                return json.loads(data)
            if first & 0x0F == 8:
                self.frame(0x88, data)
                raise Gone
            if first & 0x0F == 9:
                self.frame(0x8A, data)

    def exactly(self, size):
        """As many bytes as asked for."""
        data = b""
        while len(data) < size:
            more = self.raw.recv(size - len(data))
            if not more:
                raise Gone
            data += more
        return data


class Server(ThreadingHTTPServer):
    """A thread for each connection."""

    # The default of 5 overflows when 20 clients connect at once: the kernel then drops connections
    # that the client holds for open, and resets them.
    request_queue_size = 128


class FakeNode:
    """The server on a free port, as a context."""

    def __init__(self, fault):
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.state = State(fault)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        # A short poll: the server's end waits for it.
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
