"""The chain from outside: JSON-RPC, sessions opened as a client opens them, and bad weather.

The weather never touches a session's opening: what a client has not seen buried is not used yet,
as careful clients do. Everything else (claims, completions, the host's nonces) it may undo.
"""

import asyncio
import itertools

from wire import request_json

SELECTOR_SESSION_JOBS = "ef39d372"
SELECTOR_CREATE_SESSION_JOB = "366e2177"
SELECTOR_COMPLETE = "040138dd"
SELECTOR_BALANCE = "d4fac45d"
TOPIC_SESSION_CREATED = "0x513b4fec3e6ae39000befae860b986c341242d8f5137c9ffafc229557420c42f"
TOPIC_PROOF_V3 = "0xb4c5c92500782d044d3f3d15b5bdc795913a997874aa9ba898f5b24754d4b7f8"
GWEI = 10**9
DURATION_MAX = 31_536_000


class RpcError(Exception):
    """The chain refused."""


class Chain:
    """One anvil and the contracts on it."""

    def __init__(self, facts, price, burial=5):
        self.facts, self.price, self.burial = facts, price, burial
        host, port = facts["rpc_url"].removeprefix("http://").split(":")
        self.address = (host, int(port))
        self.marketplace = facts["addresses"]["job_marketplace"]
        self.host = facts["accounts"]["host"]["address"]
        self.depositor = facts["accounts"]["depositor"]["address"]
        self.numbers = itertools.count(1)
        # Held while blocks must stay where they are.
        self.still = asyncio.Lock()

    async def rpc(self, method, *params):
        """One call, not through the proxy."""
        body = {"jsonrpc": "2.0", "id": next(self.numbers), "method": method, "params": params}
        _, answer = await request_json(self.address, "/", body)
        if "error" in answer:
            raise RpcError(f"{method}: {answer['error']}")
        return answer["result"]

    async def mine(self, blocks=1, seconds=0):
        """Mines blocks, the first of them `seconds` later than it would be."""
        if seconds:
            await self.rpc("evm_increaseTime", seconds)
        await self.rpc("anvil_mine", hex(blocks))

    async def open_session(self, tokens):
        """Opens a session that buys so many tokens, and buries it; its job number."""
        # Silence of three times as many seconds lets anybody end it; nobody does here.
        words = (int(self.host, 16), self.price, DURATION_MAX, tokens)
        data = "0x" + SELECTOR_CREATE_SESSION_JOB + "".join(f"{word:064x}" for word in words)
        async with self.still:
            receipt = await self.transact({
                "from": self.depositor, "to": self.marketplace, "data": data,
                "value": hex(tokens * self.price),
            })
            await self.mine(self.burial)
        for log in receipt["logs"]:
            if log["topics"][0] == TOPIC_SESSION_CREATED:
                return int(log["topics"][1], 16)
        raise RpcError(f"no session in {receipt}")

    async def complete_as_depositor(self, job):
        """The client ends its session itself, whatever the host has not claimed yet."""
        data = f"0x{SELECTOR_COMPLETE}{job:064x}{64:064x}{0:064x}"
        async with self.still:
            await self.transact(
                {"from": self.depositor, "to": self.marketplace, "data": data})

    async def transact(self, transaction):
        """Sends from an account the chain holds, in a block of its own; the receipt."""
        fee = {"maxFeePerGas": hex(2000 * GWEI), "maxPriorityFeePerGas": hex(50 * GWEI)}
        sent = await self.rpc("eth_sendTransaction", {**transaction, **fee, "gas": hex(900_000)})
        for _ in range(20):
            await self.mine()
            receipt = await self.rpc("eth_getTransactionReceipt", sent)
            if receipt is not None:
                if receipt["status"] != "0x1":
                    raise RpcError(f"reverted: {transaction}")
                return receipt
        raise RpcError(f"never mined: {transaction}")

    async def session(self, job):
        """Words of `sessionJobs(job)`: the fields of v3 in their order."""
        data = f"0x{SELECTOR_SESSION_JOBS}{job:064x}"
        raw = await self.rpc("eth_call", {"to": self.marketplace, "data": data}, "latest")
        return [int(raw[2 + 64 * at: 66 + 64 * at], 16) for at in range(15)]

    async def status(self, job):
        """0 active, 1 completed, 2 timed out."""
        return (await self.session(job))[12]

    async def claims(self):
        """{job: [(tokens, transaction)]} of all claims in the chain as it stands, oldest first."""
        logs = await self.rpc("eth_getLogs", {
            "address": self.marketplace, "fromBlock": "0x0", "toBlock": "latest",
            "topics": [TOPIC_PROOF_V3],
        })
        claims = {}
        for log in logs:
            job, tokens = int(log["topics"][1], 16), int(log["data"][2:66], 16)
            claims.setdefault(job, []).append((tokens, log["transactionHash"]))
        return claims

    async def earned(self):
        """Wei credited to the host and not withdrawn."""
        data = f"0x{SELECTOR_BALANCE}{int(self.host, 16):064x}{0:064x}"
        to = self.facts["addresses"]["host_earnings"]
        return int(await self.rpc("eth_call", {"to": to, "data": data}, "latest"), 16)


class Weather:
    """Blocks at random, and what goes wrong between them."""

    def __init__(self, chain, seen, random, options):
        self.chain, self.seen, self.random = chain, seen, random
        self.depth_max = options.reorg_depth
        self.counts = {}
        self.is_automine = False

    async def run(self):
        """Until cancelled."""
        events = [(60, self.block), (8, self.reorg), (4, self.drop), (6, self.base_fee),
                  (3, self.foreign), (5, self.pause), (2, self.automine)]
        weights, kinds = zip(*events)
        while True:
            await asyncio.sleep(self.random.uniform(0.05, 0.3))
            event = self.random.choices(kinds, weights)[0]
            async with self.chain.still:
                try:
                    await event()
                except RpcError as refused:
                    self.count(f"refused {event.__name__}")
                    del refused
                    continue
            self.count(event.__name__)

    def count(self, name):
        self.counts[name] = self.counts.get(name, 0) + 1

    async def block(self):
        await self.chain.mine(1, self.random.randint(1, 15))

    async def reorg(self):
        """The last blocks are replaced by empty ones; their transactions are forgotten."""
        depth = self.random.randint(1, self.depth_max)
        await self.chain.rpc("anvil_reorg", depth, [])
        self.count(f"reorg depth {depth}")

    async def drop(self):
        """One of the host's transactions vanishes from the pool."""
        if self.seen:
            await self.chain.rpc("anvil_dropTransaction", self.random.choice(self.seen[-3:]))

    async def base_fee(self):
        fee = int(self.random.choice([0.01, 0.5, 1, 5, 20, 60]) * GWEI)
        await self.chain.rpc("anvil_setNextBlockBaseFeePerGas", hex(fee))
        await self.chain.mine(1, self.random.randint(1, 5))

    async def foreign(self):
        """Somebody else who holds the host's key spends its next nonce."""
        fee = {"maxFeePerGas": hex(500 * GWEI), "maxPriorityFeePerGas": hex(5 * GWEI)}
        await self.chain.rpc("eth_sendTransaction", {
            "from": self.chain.host, "to": self.chain.depositor, "value": "0x1",
            "gas": hex(21_000), **fee,
        })

    async def pause(self):
        """No block for a while."""
        await asyncio.sleep(self.random.uniform(0.3, 1.0))

    async def automine(self):
        """Blocks come by themselves, or no longer do."""
        self.is_automine = not self.is_automine
        await self.chain.rpc("evm_setAutomine", self.is_automine)

    async def calm(self):
        """The sky clears: cheap blocks for every transaction."""
        async with self.chain.still:
            await self.chain.rpc("anvil_setNextBlockBaseFeePerGas", hex(GWEI))
            await self.chain.mine()
            await self.chain.rpc("evm_setAutomine", True)
