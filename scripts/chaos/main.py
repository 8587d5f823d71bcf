"""Kills the node again and again while it streams and claims on a rough chain; then audits it.

Run by scripts/chaos-chain.sh, which starts the chain. The last line on standard output is one JSON
object; the exit status is 0 when no claim was doubled or lost and no session drifted.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

sys.dont_write_bytecode = True  # nothing is left beside the sources

from audit import Audit  # noqa: E402
from chain import Chain, RpcError, Weather  # noqa: E402
from clients import TOKENS_IN_WHOLE, Client, Seat  # noqa: E402
from node import Node, NodeEnded  # noqa: E402
from proxy import Proxy  # noqa: E402
from wire import Broken, request_json  # noqa: E402

# Wei, or units of the payment token: a hundred tokens are worth more than a claim's gas in any
# weather.
PRICE = 10**15
UP_SECONDS_MAX = 60
CALM_SECONDS_MAX = 180
STARTS_MAX = 5
CHAIN_SILENT = "chain endpoint did not answer"
# (weight, moment, how often it may pass before the kill)
TRAPS = (
    (30, "time", 0), (6, "start", 0), (8, "transaction broadcast", 1), (6, "claim included", 1),
    (10, "before send", 2), (10, "after send", 2), (8, "dry run", 2), (8, "receipt", 6),
    (14, "token", 80), (4, "body", 1),
)


class Run:
    """Everything, from the first start to the verdict."""

    def __init__(self, options):
        self.options = options
        options.whole_max = TOKENS_IN_WHOLE
        self.home = Path(options.state)
        self.data_dir = self.home / "data"
        self.random = self.random_for("kills")
        self.chain = Chain(json.loads(options.chain), PRICE, options.reorg_depth + 2)
        self.proxy = Proxy(self.chain, self.random_for("proxy"), self.fire)
        self.weather = Weather(self.chain, self.proxy.seen, self.random_for("weather"), options)
        self.accounts, self.clients = {}, []
        self.audit = Audit(self)
        self.node, self.trap = None, None
        self.is_open = asyncio.Event()
        self.is_idle = asyncio.Event()
        self.busy = 0
        self.moments = Counter()

    def random_for(self, who):
        """A generator of its own for each actor, so that one's pace does not change another's."""
        return random.Random(f"{self.options.seed} {who}")

    def fire(self, moment):
        """Something happened; the trap may be set for it."""
        if self.trap is None or self.trap[0] != moment or self.node is None:
            return
        self.trap[1] -= 1
        if self.trap[1] < 0:
            delay, node = self.trap[2], self.node
            self.trap = None
            self.moments[moment] += 1
            if delay:
                asyncio.get_running_loop().call_later(delay, node.kill)
            else:
                node.kill()

    async def node_for_work(self):
        """The node, once it serves."""
        await self.is_open.wait()
        return self.node

    def environment(self, url, grace):
        facts, terms = self.chain.facts, {}
        if self.chain.token is not None:
            # At any price; a unit is worth a wei, so that claims are weighed as in native coin.
            terms["TALLY_SESSION_PAYMENT_TOKENS"] = f"{self.chain.token}=1:1"
        if self.chain.shape.is_model_bound:
            terms["TALLY_MODEL_REPO"] = facts["model"]["repo"]
            terms["TALLY_MODEL_FILE"] = facts["model"]["file"]
            terms["TALLY_CHAIN_MODEL_REGISTRY"] = facts["addresses"]["model_registry"]
        return {
            **terms,
            "HOME": str(self.home),
            "LD_PRELOAD": self.options.preload,
            "TALLY_DATA_DIR": str(self.data_dir),
            "TALLY_LISTEN": "127.0.0.1:0",
            "TALLY_MODEL_PATH": self.options.model,
            "TALLY_MODEL_NAME": "smol",
            "TALLY_CHAIN_RPC_URLS": url,
            "TALLY_CHAIN_ID": str(facts["chain_id"]),
            "TALLY_CHAIN_MARKETPLACE": self.chain.marketplace,
            "TALLY_HOST_PRIVATE_KEY": facts["accounts"]["host"]["private_key"],
            "TALLY_SETTLEMENT_POLL_MILLISECONDS": "50",
            "TALLY_SETTLEMENT_CONFIRMATIONS": str(self.options.confirmations),
            "TALLY_SETTLEMENT_REPRICE_AFTER_SECONDS": "1",
            "TALLY_SETTLEMENT_GRACE_SECONDS": grace,
            "TALLY_SETTLEMENT_GRACE_CLEAN_SECONDS": "0",
            "TALLY_SETTLEMENT_IDLE_SECONDS": grace,
            "TALLY_SHUTDOWN_GRACE_SECONDS": "5",
            "TALLY_LOG_FORMAT": "json",
            "TALLY_LOG_FILTER": "info,tally=debug",
        }

    async def launch(self, grace):
        """A new life of the node."""
        self.grace = grace
        environment = self.environment(self.url, grace)
        self.node = Node(self.options.binary, environment, self.fire, self.home / "node.log")
        await self.node.start()

    async def until_up(self):
        """Waits until the node listens; false where it was killed before.

        A node that cannot read the chain at its start ends and says so: as its supervisor does,
        it is started again.
        """
        for _ in range(STARTS_MAX):
            try:
                return await self.until_up_once()
            except NodeEnded as ended:
                if CHAIN_SILENT not in str(ended):
                    raise
                self.moments["start refused"] += 1
                await self.launch(self.grace)
        raise NodeEnded(f"{STARTS_MAX} times at its start:\n{self.node.last_words()}")

    async def until_up_once(self):
        """One start's end: true when it listens, false when it was killed."""
        up = asyncio.create_task(self.node.is_up.wait())
        end = asyncio.create_task(self.node.ended())
        await asyncio.wait({up, end}, timeout=UP_SECONDS_MAX, return_when=asyncio.FIRST_COMPLETED)
        is_up, is_over = up.done(), end.done()
        up.cancel()
        end.cancel()
        if is_over and not self.node.is_killed:
            raise NodeEnded(f"at its start:\n{self.node.last_words()}")
        if not is_up and not is_over:
            raise NodeEnded(f"not up in {UP_SECONDS_MAX} s:\n{self.node.last_words()}")
        return is_up

    async def life(self, number):
        """One start, some work, one kill, one look at the books."""
        weights, moments, passes = zip(*TRAPS)
        moment = self.random.choices(range(len(TRAPS)), weights)[0]
        name, passes = moments[moment], self.random.randint(0, passes[moment])
        delay = self.random.choice([0, 0, self.random.uniform(0, 0.012)])
        fuse = self.random.uniform(0, 1.6) if name == "time" else 2.0
        # Some lives end sessions that are quiet for a moment, others let them be.
        await self.launch(self.random.choice(["1", "60", "60"]))
        loop = asyncio.get_running_loop()
        if name == "start":
            self.moments[name] += 1
            loop.call_later(self.random.uniform(0, 0.7), self.node.kill)
        if await self.until_up() and not self.node.is_killed:
            self.trap = [name, passes, delay]
            self.proxy.is_rough = self.random.random() < 0.7
            self.is_open.set()
            timer = loop.call_later(fuse, self.fuse_out, name)
            status = await self.node.ended()
            timer.cancel()
            if not self.node.is_killed:
                raise NodeEnded(f"by itself, status {status}:\n{self.node.last_words()}")
        await self.node.ended()
        self.is_open.clear()
        self.proxy.is_rough, self.trap = False, None
        while self.busy:
            self.is_idle.clear()
            await self.is_idle.wait()
        await self.audit.after_kill(number)

    def fuse_out(self, name):
        """The moment did not come, or time was the moment."""
        self.moments["time" if name == "time" else f"no {name}"] += 1
        self.node.kill()

    def hire(self):
        """Clients and the sessions they share: alone, two streams, a stream and a socket."""
        for kinds in (("sse",), ("sse", "sse"), ("ws",), ("ws", "sse"), ("whole",)):
            seat = Seat(self, "whole" in kinds)
            self.clients += [Client(self, kind, seat) for kind in kinds]

    async def chaos(self):
        """All kills."""
        self.hire()
        tasks = [asyncio.create_task(client.live()) for client in self.clients]
        tasks.append(asyncio.create_task(self.weather.run()))
        begun = time.monotonic()
        try:
            for number in range(1, self.options.kills + 1):
                await self.life(number)
                for task in tasks:
                    if task.done():
                        task.result()
                if number % 10 == 0:
                    claims = sum(map(len, (await self.chain.claims()).values()))
                    say(f"{number} kills in {time.monotonic() - begun:.0f} s, "
                        f"{len(self.accounts)} sessions, {claims} claims, "
                        f"{len(self.audit.problems)} problems")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for client in self.clients:
                client.drop()

    async def settle(self):
        """No faults any more: the node ends every session that has something recorded."""
        await self.weather.calm()
        await self.launch("1")
        if not await self.until_up():
            raise NodeEnded("at its last start")
        open_jobs = [job for job in self.accounts if self.audit.ledger.recorded(job)]
        deadline = time.monotonic() + CALM_SECONDS_MAX
        while open_jobs and time.monotonic() < deadline:
            async with self.chain.still:
                await self.chain.mine(1, 5)
            await asyncio.sleep(0.05)
            open_jobs = [job for job in open_jobs if await self.phase(job) not in
                         ("completed", "halted")]
        if open_jobs:
            self.audit.problems.append(f"not settled in {CALM_SECONDS_MAX} s: jobs {open_jobs}")
        self.node.terminate()
        status = await self.node.ended()
        if status != 0:
            self.audit.problems.append(f"stopped with status {status}: {self.node.last_words()}")

    async def phase(self, job):
        """What the node says of a session."""
        try:
            status, report = await request_json(
                self.node.address, f"/v1/sessions/{job}", None, "GET")
        except Broken:
            raise NodeEnded(f"by itself:\n{self.node.last_words()}") from None
        return report["phase"] if status == 200 else f"status {status}"

    async def status(self):
        """`tally status --json`."""
        process = await asyncio.create_subprocess_exec(
            self.options.binary, "status", "--json", env=self.environment(self.url, "1"),
            cwd=self.home, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        return json.loads(out)

    async def whole(self):
        """The run; its result."""
        self.home.mkdir(parents=True, exist_ok=True)
        self.url = await self.proxy.start()
        await self.chain.rpc("evm_setAutomine", False)
        await self.chain.fund()
        await self.chain.mine(10)  # the contracts stay
        begun = time.monotonic()
        try:
            await self.chaos()
            await self.settle()
            result = await self.audit.finish(await self.status())
        except (NodeEnded, RpcError, *Broken) as ended:
            self.audit.problems.append(f"{type(ended).__name__}: {ended}")
            result = {"double_claims": None, "lost_claims": None,
                      "max_drift_tokens": self.audit.max_drift}
        finally:
            if self.node is not None:
                self.node.kill()
        problems = self.audit.problems
        paid_in = "native" if self.chain.token is None else "erc20"
        return {"ok": not problems, "kills": self.options.kills, **result,
                "contract": self.chain.facts["contract_version"], "payment_token": paid_in,
                "seed": self.options.seed, "moments": dict(self.moments),
                "weather": self.weather.counts, "rpc": self.proxy.counts,
                "problems": problems[:20], "seconds": round(time.monotonic() - begun)}


def say(text):
    """Progress, beside the result."""
    print(f"chaos-chain: {text}", file=sys.stderr, flush=True)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--chain", required=True, help="what scripts/devchain.sh printed")
    add("--binary", required=True)
    add("--model", required=True)
    add("--state", required=True, help="a folder for the node")
    add("--preload", default="", help="a library that the node loads: scripts/chaos/slow_disk.c")
    add("--kills", type=int, required=True)
    add("--seed", type=int, required=True)
    add("--confirmations", type=int, required=True)
    add("--reorg-depth", type=int, required=True)
    options = parser.parse_args()
    result = asyncio.run(Run(options).whole())
    print(json.dumps(result), flush=True)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
