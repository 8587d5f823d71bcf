"""HTTP/1.1 and WebSocket as a client of this harness speaks them: raw bytes in, counts out.

Nothing here uses the node's code or a library's idea of a message: what a client saw is counted
from the bytes that came through its socket, up to the last one before the connection ended.
"""

import asyncio
import base64
import json
import os
import struct

Broken = (OSError, EOFError, asyncio.IncompleteReadError, ValueError)


class Reader(asyncio.StreamReader):
    """A reader for which a reset is an end: what arrived before it is still read."""

    def set_exception(self, exc):
        del exc
        self.feed_eof()


async def connect(address):
    """(reader, writer) of a new connection."""
    loop = asyncio.get_running_loop()
    reader = Reader(limit=1 << 20, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.create_connection(lambda: protocol, *address)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def request_json(address, path, body, method="POST"):
    """One exchange on a connection of its own; (status, decoded body)."""
    reader, writer = await connect(address)
    try:
        writer.write(request_bytes(method, path, body))
        status, headers = await read_head(reader)
        raw = bytearray()
        async for piece in body_pieces(reader, headers):
            raw += piece
        return status, json.loads(raw or b"null")
    finally:
        writer.close()


def request_bytes(method, path, body):
    """A request as text."""
    payload = b"" if body is None else json.dumps(body).encode()
    head = (f"{method} {path} HTTP/1.1\r\nhost: node\r\ncontent-type: application/json\r\n"
            f"content-length: {len(payload)}\r\nconnection: close\r\n\r\n")
    return head.encode() + payload


async def read_head(reader):
    """(status, headers with lower-case names) of an answer."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(lines[0].split(" ")[1]), headers


async def body_pieces(reader, headers):
    """Pieces of a body as they arrive; raises when the connection ends before the body does."""
    if "chunked" in headers.get("transfer-encoding", ""):
        while size := int(await reader.readuntil(b"\r\n"), 16):
            left = size
            while left:
                piece = await reader.read(left)
                if not piece:
                    raise EOFError("cut in a chunk")
                left -= len(piece)
                yield piece
            await reader.readexactly(2)
        return
    left = int(headers.get("content-length", "0"))
    while left:
        piece = await reader.read(left)
        if not piece:
            raise EOFError("cut in the body")
        left -= len(piece)
        yield piece


async def events(reader, headers):
    """The data of each complete server-sent event, until the body's end."""
    buffer = bytearray()
    async for piece in body_pieces(reader, headers):
        buffer += piece
        while (end := buffer.find(b"\n\n")) >= 0:
            event, buffer = bytes(buffer[:end]), buffer[end + 2:]
            if event.startswith(b"data:"):
                yield event[5:].strip()


class Socket:
    """A WebSocket client: text frames, pings answered, nothing else."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, address, path):
        """A connection past its upgrade."""
        reader, writer = await connect(address)
        key = base64.b64encode(os.urandom(16)).decode()
        writer.write((f"GET {path} HTTP/1.1\r\nhost: node\r\nupgrade: websocket\r\n"
                      f"connection: Upgrade\r\nsec-websocket-key: {key}\r\n"
                      f"sec-websocket-version: 13\r\n\r\n").encode())
        status, _ = await read_head(reader)
        if status != 101:
            writer.close()
            raise OSError(f"upgrade answered with {status}")
        return cls(reader, writer)

    def send(self, message):
        """Sends one JSON message."""
        self.frame(1, json.dumps(message).encode())

    def frame(self, opcode, payload):
        """Sends one masked frame."""
        head = bytes([0x80 | opcode])
        size = len(payload)
        if size < 126:
            head += bytes([0x80 | size])
        else:
            head += bytes([0x80 | 126]) + struct.pack(">H", size)
        mask = os.urandom(4)
        body = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        self.writer.write(head + mask + body)

    async def receive(self):
        """The next JSON message; `None` at a close frame."""
        while True:
            first, second = await self.reader.readexactly(2)
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack(">H", await self.reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", await self.reader.readexactly(8))
            payload = await self.reader.readexactly(size)
            opcode = first & 0x0F
            if opcode == 1:
                return json.loads(payload)
            if opcode == 8:
                return None
            if opcode == 9:
                self.frame(10, payload)

    def close(self, code=None):
        """Says goodbye with `code`, or just goes."""
        if code is not None:
            self.frame(8, struct.pack(">H", code))
        self.writer.close()
