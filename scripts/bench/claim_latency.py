"""From a claim's due moment to its broadcast, and what a dead chain costs a stream.

Run by scripts/bench/claim-latency.sh. Everything is measured from outside: when the client's socket
brought the token that made a claim due, when the RPC proxy in front of the chain saw the broadcast.
The last line on standard output is one JSON object.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "chaos"))

from chain import Chain  # noqa: E402
from node import Node  # noqa: E402
from proxy import Proxy  # noqa: E402
from wire import connect, events, read_head, request_bytes  # noqa: E402

CLAIM_MIN = 100
SESSION_TOKENS = 20_000
SELECTOR_CLAIM = "c8c664ee"
PROMPT = "Write a very long story about a lighthouse keeper. Once upon a time"
CLAIM_MS_MAX = 1000  # p95, from due to broadcast
# How far the same percentile lies apart on a busy machine without any cause. A wait for the chain
# would be one of a second and more.
NOISE, NOISE_MS = 2, 50
QUIET_SECONDS = 2.5  # past which a session's reading is no longer fresh


class Net(Proxy):
    """A proxy that is well, hangs, or is dead; and that knows when a claim was first sent."""

    def __init__(self, chain, delay):
        super().__init__(chain, random.Random(0), lambda moment: None)
        self.delay = delay  # seconds before a request reaches the chain, as over the internet
        self.state = "healthy"
        self.waiting = {}  # job: when its next claim became due
        self.claimed = {}  # job: tokens of all claims that were sent
        self.sent = set()
        self.latencies = []

    async def heard(self, request, reader):
        if self.state == "hung":
            await reader.read(1)  # until the node gives up
        await asyncio.sleep(self.delay)
        if self.state != "healthy":
            return False
        if request["method"] == "eth_sendRawTransaction":
            self.broadcast(request["params"][0])
        return True

    def broadcast(self, raw):
        """Signed bytes go out: whose claim, of how many tokens, and how late."""
        at = raw.find(SELECTOR_CLAIM)
        if at < 0 or raw in self.sent:
            return
        self.sent.add(raw)
        job, tokens = int(raw[at + 8:at + 72], 16), int(raw[at + 72:at + 136], 16)
        self.claimed[job] = self.claimed.get(job, 0) + tokens
        since = self.waiting.pop(job, None)
        if since is not None:
            self.latencies.append(time.monotonic() - since)


class Bench:
    """One node on one chain."""

    def __init__(self, options):
        self.options = options
        self.chain = Chain(json.loads(options.chain), 10**15)
        self.net = Net(self.chain, options.delay / 1000)
        self.home = Path(options.state)
        self.seen = {}

    async def start(self):
        url = await self.net.start()
        facts = self.chain.facts
        self.home.mkdir(parents=True, exist_ok=True)
        environment = {
            "HOME": str(self.home), "TALLY_DATA_DIR": str(self.home / "data"),
            "TALLY_LISTEN": "127.0.0.1:0", "TALLY_MODEL_PATH": self.options.model,
            "TALLY_MODEL_NAME": "smol", "TALLY_CHAIN_RPC_URLS": url,
            "TALLY_CHAIN_ID": str(facts["chain_id"]),
            "TALLY_CHAIN_MARKETPLACE": self.chain.marketplace,
            "TALLY_HOST_PRIVATE_KEY": facts["accounts"]["host"]["private_key"],
            "TALLY_LOG_FORMAT": "json",
        }
        # All other settings are the defaults: they are what is measured.
        log = self.home / "node.log"
        self.node = Node(self.options.binary, environment, lambda moment: None, log)
        await self.node.start()
        await asyncio.wait_for(self.node.is_up.wait(), 60)

    async def blocks(self):
        """A block every 100 ms of a chain on which a claim's allowance is never short."""
        while True:
            await asyncio.sleep(0.1)
            await self.chain.mine(1, 20)

    async def stream(self, job, count):
        """One answer; (seconds to the first token, pauses between frames)."""
        body = {"model": "smol", "prompt": PROMPT, "max_tokens": count, "temperature": 1.0,
                "seed": random.randrange(10**6), "stream": True, "job_id": job}
        reader, writer = await connect(self.node.address)
        begun = last = time.monotonic()
        first, pauses = None, []
        try:
            writer.write(request_bytes("POST", "/v1/inference", body))
            status, headers = await read_head(reader)
            if status != 200:
                raise SystemExit(f"status {status}")
            async for event in events(reader, headers):
                if event == b"[DONE]":
                    break
                frame = json.loads(event)
                if frame["finish_reason"] is not None:
                    continue
                now = time.monotonic()
                if first is None:
                    first = now - begun
                else:
                    pauses.append(now - last)
                last = now
                self.count(job, frame["tokens"], now)
        finally:
            writer.close()
        return first, pauses

    def count(self, job, tokens, now):
        """A claim is due when a hundred tokens are in no claim that was sent."""
        self.seen[job] = self.seen.get(job, 0) + tokens
        due = self.seen[job] - self.net.claimed.get(job, 0)
        if due >= CLAIM_MIN and job not in self.net.waiting and self.net.state == "healthy":
            self.net.waiting[job] = now

    async def claims(self):
        """Seconds from due to broadcast, of so many claims."""
        jobs = [await self.chain.open_session(SESSION_TOKENS) for _ in range(self.options.sessions)]
        while len(self.net.latencies) < self.options.samples:
            await asyncio.gather(*(self.stream(job, 130) for job in jobs))
            # The rest of the round's claims leaves before the next begins.
            deadline = time.monotonic() + 15
            while self.net.waiting and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            if self.net.waiting:
                raise SystemExit(f"no claim in 15 s: {self.net.waiting}")
            # In no step with the node's own pauses.
            await asyncio.sleep(random.random())
        return self.net.latencies

    async def streams(self):
        """{state: (first tokens, pauses)}: the same session under a well and a silent chain.

        A session for each round: what is not claimed must stay below the exposure limit, or the
        node slows the stream down to what can be claimed.
        """
        measured = {state: ([], []) for state in ("healthy", "dead", "hung")}
        for _ in range(self.options.rounds):
            self.net.state = "healthy"
            job = await self.chain.open_session(SESSION_TOKENS)
            await self.stream(job, 20)
            for state, (firsts, pauses) in measured.items():
                self.net.state = state
                await asyncio.sleep(QUIET_SECONDS)
                first, between = await self.stream(job, 120)
                firsts.append(first)
                pauses += between
        self.net.state = "healthy"
        return measured

    async def whole(self):
        await self.chain.mine(3)
        await self.start()
        blocks = asyncio.create_task(self.blocks())
        try:
            latencies = await self.claims()
            measured = await self.streams()
        finally:
            blocks.cancel()
            self.node.kill()
            await self.node.ended()
            await self.net.stop()
        options = self.options
        result = {"claim_samples": len(latencies), "sessions": options.sessions,
                  "rpc_delay_ms": options.delay, **spread("claim_ms", latencies)}
        for state, (firsts, pauses) in measured.items():
            result |= spread(f"gap_{state}_ms", pauses) | spread(f"ttft_{state}_ms", firsts)
        is_ok = result["claim_ms_p95"] <= CLAIM_MS_MAX
        for kind in ("gap", "ttft"):
            well = result[f"{kind}_healthy_ms_p99"]
            worst = max(result[f"{kind}_{state}_ms_p99"] for state in ("dead", "hung"))
            result[f"{kind}_cost_of_silence_ms_p99"] = round(worst - well, 1)
            is_ok = is_ok and worst <= NOISE * well + NOISE_MS
        return {"ok": is_ok, **result}


def spread(name, values):
    """Percentiles in milliseconds."""
    values = sorted(values)
    at = lambda share: round(1000 * values[min(len(values) - 1, int(share * len(values)))], 1)
    return {f"{name}_p50": at(0.5), f"{name}_p95": at(0.95), f"{name}_p99": at(0.99)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--chain", "--binary", "--model", "--state"):
        parser.add_argument(name, required=True)
    for name, default in (("--samples", 60), ("--sessions", 4), ("--delay", 50), ("--rounds", 6)):
        parser.add_argument(name, type=int, default=default)
    options = parser.parse_args()
    result = asyncio.run(Bench(options).whole())
    print(json.dumps(result), flush=True)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
