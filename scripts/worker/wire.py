"""What a client of a worker needs: requests, and streams read frame by frame. Standard library."""

import http.client
import json
import time
from urllib.parse import urlsplit

JSON = {"Content-Type": "application/json"}


class Worker:
    """A worker at a URL."""

    def __init__(self, url, token=None):
        parts = urlsplit(url)
        self.host, self.port = parts.hostname, parts.port or 80
        self.url = url.rstrip("/")
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    def connect(self):
        return http.client.HTTPConnection(self.host, self.port, timeout=120)

    def call(self, method, path, body=None, headers=None):
        """Status, headers in lower case, and the body's bytes."""
        connection = self.connect()
        try:
            given = JSON if headers is None and method == "POST" else (headers or {})
            connection.request(method, path, body=body, headers={**given, **self.headers})
            answer = connection.getresponse()
            named = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, named, answer.read()
        finally:
            connection.close()

    def post(self, path, fields):
        status, _, body = self.call("POST", path, json.dumps(fields))
        return status, json.loads(body)

    def run(self, fields, headers=None):
        """A whole stream as a list of frames."""
        with self.stream(fields, headers) as stream:
            return list(stream)

    def stream(self, fields, headers=None):
        return Stream(self, fields, headers or {})


class Stream:
    """An answer that is read as it comes. Leaving it closes the connection."""

    def __init__(self, worker, fields, headers):
        self.connection = worker.connect()
        self.connection.request(
            "POST", "/execute", json.dumps(fields), {**JSON, **worker.headers, **headers}
        )
        self.answer = self.connection.getresponse()
        if self.answer.status != 200:
            body = self.answer.read()
            self.connection.close()
            raise AssertionError(f"wanted 200, found {self.answer.status}: {body[:300]!r}")
        kind = self.answer.getheader("Content-Type", "")
        assert kind.split(";")[0] == "text/event-stream", kind
        self.raw = b""
        self.times = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()
        self.answer.close()

    def __iter__(self):
        while (frame := self.next()) is not None:
            yield frame

    def next(self):
        """The next frame's data; None at the stream's end."""
        lines = []
        while True:
            line = self.answer.readline()
            if not line:
                assert not lines, f"the stream ends within a frame: {lines}"
                return None
            self.raw += line
            if line not in (b"\n", b"\r\n"):
                lines.append(line.decode("utf-8").rstrip("\r\n"))
            elif lines:
                self.times.append(time.monotonic())
                return self.frame(lines)

    @staticmethod
    def frame(lines):
        fields = dict(line.split(": ", 1) for line in lines)
        assert set(fields) == {"event", "data"}, f"wanted an event: and a data: line: {lines}"
        data = json.loads(fields["data"])
        assert data.get("type") == fields["event"], f"type and event differ: {lines}"
        return data
