"""Paying clients: each asks, reads every byte to the connection's end, and counts what it saw.

A client never leaves in the middle of an answer, so that whatever was written it has seen: then
tokens seen and tokens recorded may differ only by what the node wrote and had not recorded.
"""

import asyncio
import json

from chain import RpcError
from wire import Broken, Socket, body_pieces, connect, events, read_head, request_bytes

PROMPTS = (
    "Write a long story about a lighthouse keeper. Once upon a time",
    "Explain in many sentences why the sky is blue.",
    "List many rivers and say one sentence about each of them.",
)
SESSION_TOKENS = (700, 3000, 20_000)  # what a deposit buys: soon spent, later, never
TOKENS_IN_WHOLE = 48  # at most, of an answer in one body


class Gone(Exception):
    """The session is over: another one is needed."""


class Account:
    """What clients know of one job."""

    def __init__(self, job, is_whole):
        self.job, self.is_whole = job, is_whole
        self.seen = 0
        self.prompts = 0
        self.is_retired = False
        self.is_ended_by_client = False
        self.drift = 0


class Client:
    """One client, prompt after prompt."""

    def __init__(self, run, kind, seat):
        self.run, self.kind, self.seat = run, kind, seat
        self.random = run.random_for(f"client {len(run.clients)}")
        self.socket = None

    async def live(self):
        """Until cancelled: prompts, as long as there is a node."""
        while True:
            node = await self.run.node_for_work()
            account = await self.seat.account()
            self.run.busy += 1
            try:
                await self.prompt(node, account)
            except Broken:
                self.drop()
                await asyncio.sleep(0.02)
            except Gone:
                self.drop()
                self.seat.retire(account)
            finally:
                self.run.busy -= 1
                self.run.is_idle.set()
            if self.random.random() < 0.02:
                await self.part(account)

    async def part(self, account):
        """This session has had enough: a goodbye, or the client's own completion."""
        self.seat.retire(account)
        if self.socket is not None:
            self.socket.close(1000)
            self.socket = None
        if self.random.random() < 0.15:
            try:
                await self.run.chain.complete_as_depositor(account.job)
            except RpcError:
                return  # the host was faster: nothing is forfeited
            account.is_ended_by_client = True

    def drop(self):
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    async def prompt(self, node, account):
        account.prompts += 1
        if self.kind == "ws":
            await self.over_websocket(node, account)
        else:
            await self.over_http(node, account, self.kind == "sse")

    def saw(self, account, tokens):
        """Tokens whose frame came whole."""
        account.seen += tokens
        self.run.fire("token")

    async def over_http(self, node, account, is_stream):
        limit = self.random.randint(20, 160) if is_stream else TOKENS_IN_WHOLE
        body = {"model": "smol", "prompt": self.random.choice(PROMPTS), "max_tokens": limit,
                "temperature": 0.8, "seed": self.random.randint(1, 10**6), "stream": is_stream,
                "job_id": account.job}
        reader, writer = await connect(node.address)
        try:
            writer.write(request_bytes("POST", "/v1/inference", body))
            status, headers = await read_head(reader)
            if status != 200 or not is_stream:
                raw = bytearray()
                async for piece in body_pieces(reader, headers):
                    raw += piece
                answer = json.loads(raw)
                if status != 200:
                    refused(answer.get("error_type", ""), answer)
                self.run.fire("body")
                return self.saw(account, answer["tokens_used"])
            async for event in events(reader, headers):
                if event == b"[DONE]":
                    return None
                frame = json.loads(event)
                if frame["finish_reason"] is None:
                    self.saw(account, frame["tokens"])
        finally:
            writer.close()
        return None

    async def over_websocket(self, node, account):
        if self.socket is None:
            self.socket = await Socket.connect(node.address, "/v1/ws")
            self.socket.send({"type": "session_init", "session_id": f"{account.job}n",
                              "jobId": account.job, "id": "i"})
        limit = self.random.randint(20, 160)
        self.socket.send({"type": "prompt", "id": "p", "prompt": self.random.choice(PROMPTS),
                          "jobId": account.job, "conversation_context": [],
                          "request": {"model": "smol", "max_tokens": limit, "stream": True,
                                      "temperature": 0.8}})
        cancel_at = self.random.randint(5, 40) if self.random.random() < 0.1 else None
        seen = 0
        while True:
            message = await self.socket.receive()
            if message is None:
                raise EOFError("closed by the node")
            if message["type"] == "stream_chunk":
                seen += message["tokens"]
                self.saw(account, message["tokens"])
                if cancel_at is not None and seen >= cancel_at:
                    cancel_at = None
                    self.socket.send({"type": "stream_cancel", "session_id": str(account.job)})
            elif message["type"] == "stream_end":
                return
            elif message["type"] == "error":
                refused(message.get("error_type") or message.get("code", ""), message)


def refused(kind, answer):
    """A refusal: the session's end, or no good moment."""
    kind = kind.lower()
    if any(word in kind for word in ("closed", "not_found", "payment", "internal")):
        raise Gone(kind)
    raise ValueError(f"refused: {answer}")


class Seat:
    """A place for clients that share a session; a session that is over is replaced."""

    def __init__(self, run, is_whole):
        self.run, self.is_whole = run, is_whole
        self.random = run.random_for(f"seat {len(run.clients)}")
        self.now = None
        self.opening = asyncio.Lock()

    async def account(self):
        async with self.opening:
            if self.now is None or self.now.is_retired:
                tokens = self.random.choice(SESSION_TOKENS)
                job = await self.run.chain.open_session(tokens)
                self.now = Account(job, self.is_whole)
                self.run.accounts[job] = self.now
            return self.now

    def retire(self, account):
        account.is_retired = True
