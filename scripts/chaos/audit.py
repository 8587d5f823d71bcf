"""The auditor: its own arithmetic over the ledger's file, the chain's log and what clients counted.

Reads the ledger as a database, never through the node, and always a copy made while the node is
dead. Shares no sum with the node.
"""

import json
import shutil
import sqlite3
import tempfile
from pathlib import Path

CLAIM_MIN = 100  # MIN_PROVEN_TOKENS of the contract
CREDIT = 8  # tokens of a job that may be written and not yet recorded


class Ledger:
    """What the ledger's file says, read piece by piece over the node's lives."""

    def __init__(self, data_dir):
        self.data_dir = Path(data_dir)
        self.last = self.rows = 0
        self.places = {}  # job: {(turn, position)}
        self.halted = {}
        self.closed = {}
        self.faults = []

    def read(self):
        """Takes in what was added since the last look; notes what an honest ledger never does."""
        files = list(self.data_dir.glob("*/ledger.sqlite3"))
        if not files:
            return
        with tempfile.TemporaryDirectory() as folder:
            for part in files[0].parent.glob("ledger.sqlite3*"):
                if not part.name.endswith("-shm"):
                    shutil.copy(part, folder)
            connection = sqlite3.connect(f"{folder}/ledger.sqlite3")
            try:
                self.take(connection)
            finally:
                connection.close()

    def take(self, connection):
        kept = sum(connection.execute(f"SELECT count(*) FROM {table} WHERE id <= ?",
                                      (self.last,)).fetchone()[0]
                   for table in ("entries", "deliveries"))
        if kept != self.rows:
            self.faults.append(f"{self.rows} entries became {kept}")
        # Row ids run through both tables.
        sql = ("SELECT id, job, kind, body FROM entries WHERE id > :last UNION ALL "
               "SELECT id, job, turn * 4294967296 + position, ids FROM deliveries "
               "WHERE id > :last ORDER BY id")
        for row, job, kind, body in connection.execute(sql, {"last": self.last}):
            self.last, self.rows = row, self.rows + 1
            if isinstance(kind, int):
                self.deliver(job, divmod(kind, 1 << 32), len(body) // 4)
                continue
            fact = json.loads(body)["fact"]
            if kind == "job_halted":
                self.halted[job] = fact["job_halted"]["why"]
            elif kind == "job_closed":
                self.closed[job] = fact["job_closed"]
            elif kind == "job_reopened":
                self.closed.pop(job, None)

    def deliver(self, job, first, count):
        """Tokens of a turn from a position on; four bytes each."""
        places = self.places.setdefault(job, set())
        turn, position = first
        for offset in range(count):
            place = (turn, position + offset)
            if place in places:
                self.faults.append(f"job {job}: {place} recorded twice")
            places.add(place)

    def recorded(self, job):
        """Tokens recorded for a job."""
        return len(self.places.get(job, ()))


class Audit:
    """Compares the three sides and remembers the worst."""

    def __init__(self, run):
        self.run = run
        self.ledger = Ledger(run.data_dir)
        self.max_drift = self.max_drift_whole = 0
        self.problems = []

    async def after_kill(self, number):
        """The node is dead and its clients have read everything."""
        claims = await self.run.chain.claims()
        self.ledger.read()
        for job, account in self.run.accounts.items():
            recorded = self.ledger.recorded(job)
            claimed = sum(tokens for tokens, _ in claims.get(job, ()))
            where = f"kill {number}, job {job}"
            if claimed > recorded:
                self.problems.append(f"{where}: {claimed} claimed, {recorded} recorded")
            self.drifted(account, account.seen - recorded, where)

    def drifted(self, account, drift, where):
        step, account.drift = drift - account.drift, drift
        bound = self.run.options.whole_max if account.is_whole else CREDIT
        if not 0 <= step <= bound:
            self.problems.append(f"{where}: {step} tokens written and not recorded")
        if account.is_whole:
            self.max_drift_whole = max(self.max_drift_whole, step)
        else:
            self.max_drift = max(self.max_drift, step)

    async def cumulative(self, transaction):
        """The running total that a claim's proof commits to (docs/spec/proof.md)."""
        found = await self.run.chain.rpc("eth_getTransactionByHash", transaction)
        return self.run.chain.shape.cumulative(bytes.fromhex(found["input"][2:]))

    async def job_result(self, account, claims):
        """Problems of one job at the end: (double claims, lost tokens)."""
        job, total, doubles = account.job, 0, 0
        recorded = self.ledger.recorded(job)
        for tokens, transaction in claims:
            total += tokens
            said = await self.cumulative(transaction)
            if said != total or total > recorded or tokens < CLAIM_MIN:
                doubles += 1
                self.problems.append(f"job {job}: {transaction} claims {tokens} up to {said}, "
                                     f"chain has {total}, ledger {recorded}")
        used, status = await self.run.chain.session(job)
        if used != total:
            self.problems.append(f"job {job}: tokensUsed {used}, events {total}")
        left = recorded - total
        is_lost = left >= CLAIM_MIN and not account.is_ended_by_client
        if is_lost:
            self.problems.append(f"job {job}: {left} of {recorded} recorded tokens never claimed")
        closed = self.ledger.closed.get(job)
        if recorded and closed and closed["unclaimable"] + closed["forfeited"] != left:
            self.problems.append(f"job {job}: {left} tokens unpaid, ledger says {closed}")
        if recorded and status == 0:
            self.problems.append(f"job {job}: never completed")
        return doubles, left if is_lost else 0

    async def finish(self, status):
        """The verdict, once everything is calm and the node has stopped."""
        claims = await self.run.chain.claims()
        self.ledger.read()
        doubles = lost = lost_tokens = 0
        for job, account in self.run.accounts.items():
            self.drifted(account, account.seen - self.ledger.recorded(job), f"end, job {job}")
            double, tokens = await self.job_result(account, claims.get(job, ()))
            doubles, lost_tokens = doubles + double, lost_tokens + tokens
            lost += tokens > 0
        for job, why in self.ledger.halted.items():
            self.problems.append(f"job {job} halted: {why}")
        self.problems += self.ledger.faults
        recorded = sum(map(len, self.ledger.places.values()))
        claimed = sum(tokens for job in claims.values() for tokens, _ in job)
        if (status["tokens_recorded"], status["tokens_confirmed"]) != (recorded, claimed):
            self.problems.append(f"tally status says {status['tokens_recorded']} recorded and "
                                 f"{status['tokens_confirmed']} confirmed, wanted {recorded} and "
                                 f"{claimed}")
        return {
            "double_claims": doubles, "lost_claims": lost, "max_drift_tokens": self.max_drift,
            "max_drift_whole_body_tokens": self.max_drift_whole, "lost_tokens": lost_tokens,
            "tokens_seen": sum(account.seen for account in self.run.accounts.values()),
            "tokens_recorded": recorded, "tokens_claimed": claimed,
            "claims": sum(map(len, claims.values())), "sessions": len(self.run.accounts),
        }
