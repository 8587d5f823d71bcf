"""The chain from outside: JSON-RPC, sessions opened as a client opens them, and bad weather.

The weather never touches a session's opening: what a client has not seen buried is not used yet,
as careful clients do. Everything else (claims, completions, the host's nonces) it may undo.
"""

import asyncio
import itertools

from shapes import Shape, call
from wire import request_json

SELECTOR_SESSION_JOBS = "ef39d372"
SELECTOR_COMPLETE = "040138dd"
SELECTOR_MINT = "40c10f19"
SELECTOR_APPROVE = "095ea7b3"
TOPIC_SESSION_CREATED = "0x513b4fec3e6ae39000befae860b986c341242d8f5137c9ffafc229557420c42f"
GWEI = 10**9
TREASURE = 2**100  # of the payment token: more than any run spends


class RpcError(Exception):
    """The chain refused."""


class Chain:
    """One anvil and the contracts on it."""

    def __init__(self, facts, price, burial=5):
        self.facts, self.burial = facts, burial
        self.shape = Shape(facts["contract_version"])
        self.deposit_per_token = price
        self.price = price * facts["price_precision"]  # in the contract's unit
        self.token = facts.get("payment_token")  # of every session; None: native coin
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

    async def fund(self):
        """Makes the depositor able to pay for every session."""
        await self.rpc("anvil_setBalance", self.depositor, hex(10**24))
        if self.token is None:
            return
        allowed = (SELECTOR_APPROVE, self.marketplace)
        for selector, who in ((SELECTOR_MINT, self.depositor), allowed):
            data = call(selector, int(who, 16), TREASURE)
            await self.transact({"from": self.depositor, "to": self.token, "data": data})

    async def open_session(self, tokens):
        """Opens a session that buys so many tokens, and buries it; its job number."""
        deposit = tokens * self.deposit_per_token
        data = self.shape.opening(
            self.host, (self.price, deposit, tokens), self.facts["model"]["id"], self.token)
        async with self.still:
            receipt = await self.transact({
                "from": self.depositor, "to": self.marketplace, "data": data,
                "value": hex(deposit if self.token is None else 0),
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
        """(tokensUsed, status) of `sessionJobs(job)`; status 0 is active."""
        data = call(SELECTOR_SESSION_JOBS, job)
        raw = await self.rpc("eth_call", {"to": self.marketplace, "data": data}, "latest")
        words = [int(raw[2 + 64 * at: 66 + 64 * at], 16) for at in range(15)]
        return words[self.shape.tokens_used], words[self.shape.status]

    async def claims(self):
        """{job: [(tokens, transaction)]} of all claims in the chain as it stands, oldest first."""
        logs = await self.rpc("eth_getLogs", {
            "address": self.marketplace, "fromBlock": "0x0", "toBlock": "latest",
            "topics": [self.shape.topic],
        })
        claims = {}
        for log in logs:
            job, tokens = int(log["topics"][1], 16), int(log["data"][2:66], 16)
            claims.setdefault(job, []).append((tokens, log["transactionHash"]))
        return claims


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
