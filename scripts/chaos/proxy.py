"""A bad network between node and chain. It also tells when money is about to move.

`fire(moment)` is called at moments that matter, before anything else happens: a node that is killed
there has not heard the answer, or has not been heard.
"""

import asyncio
import json

from wire import Broken, request_json

NAMES = ("none", "slow", "hold", "closed", "unsent", "429", "500", "502")
ROUGH = (90, 4, 0.6, 1.5, 1, 1, 1, 1)
BODY_502 = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"nonce too low"}}'


class Proxy:
    """Passes JSON-RPC on to the chain and mishandles some of it."""

    def __init__(self, chain, random, fire):
        self.chain, self.random, self.fire = chain, random, fire
        self.is_rough = False
        self.seen = []  # hashes of what the node broadcast
        self.counts = {}
        self.server = None
        self.open = set()  # connections that are served

    async def start(self):
        """Listens on a free port; its URL."""
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    async def serve(self, reader, writer):
        """One connection of the node, request by request."""
        self.open.add(asyncio.current_task())
        try:
            while await self.exchange(reader, writer):
                await writer.drain()
        except Broken:
            pass  # the node is gone, or was killed
        finally:
            writer.close()
            self.open.discard(asyncio.current_task())

    async def stop(self):
        """Takes no more connections and waits for those that there are; the node has ended."""
        self.server.close()
        await asyncio.gather(*self.open)

    async def exchange(self, reader, writer):
        """One request; whether the connection goes on."""
        raw = await read_request(reader)
        request = json.loads(raw)
        method = request["method"]
        fault = self.random.choices(NAMES, ROUGH)[0] if self.is_rough else "none"
        self.counts[fault] = self.counts.get(fault, 0) + 1
        if fault == "unsent":
            return False
        if not await self.heard(request, reader):
            return False
        if method == "eth_sendRawTransaction":
            self.fire("before send")
        status, answer = await request_json(self.chain.address, "/", request)
        self.note(method, answer)
        if fault == "slow":
            await asyncio.sleep(self.random.uniform(0.02, 0.3))
        if fault == "hold":
            await reader.read(1)  # until the node hangs up, or dies
        if fault in ("closed", "hold"):
            return False
        body = json.dumps(answer).encode()
        if fault in ("429", "500", "502"):
            status, body = int(fault), BODY_502
        extra = "retry-after: 1\r\n" if fault == "429" else ""
        writer.write((f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{extra}"
                      f"content-length: {len(body)}\r\n\r\n").encode() + body)
        return True

    async def heard(self, request, reader):
        """Whether a request that came is passed on; for those who measure."""
        del request, reader
        return True

    def note(self, method, answer):
        """What the chain just said, before the node hears it."""
        result = answer.get("result")
        if method == "eth_sendRawTransaction":
            if isinstance(result, str):
                self.seen.append(result)
            self.fire("after send")
        elif method == "eth_estimateGas":
            self.fire("dry run")
        elif method == "eth_getTransactionReceipt" and result is not None:
            self.fire("receipt")


async def read_request(reader):
    """Body of one request."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-length":
            length = int(value)
    return await reader.readexactly(length)
