"""The auditor of scripts/chaos finds what it is there to find, on books that were cooked here."""

import asyncio
import base64
import json
import sqlite3
import sys
import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "chaos"))

from audit import Audit  # noqa: E402
from clients import Account  # noqa: E402
from shapes import Shape  # noqa: E402

JOB = 7


class FakeChain:
    """Claims as (tokens, running total that the proof commits to)."""

    def __init__(self):
        self.shape = Shape("v3")
        self.made = []
        self.status = 1

    async def claims(self):
        return {JOB: [(tokens, at) for at, (tokens, _) in enumerate(self.made)]}

    async def rpc(self, method, transaction):
        assert method == "eth_getTransactionByHash"
        _, total = self.made[transaction]
        proof = bytes(34) + total.to_bytes(8, "big") + bytes(145 - 42)
        words = [JOB, 0, 96, len(proof)]
        data = bytes(4) + b"".join(word.to_bytes(32, "big") for word in words) + proof
        return {"input": "0x" + data.hex()}

    async def session(self, job):
        assert job == JOB
        return sum(tokens for tokens, _ in self.made), self.status


class Books(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        (self.folder / "chain-1").mkdir()
        self.ledger = sqlite3.connect(self.folder / "chain-1" / "ledger.sqlite3")
        self.addCleanup(self.ledger.close)
        self.ledger.execute("CREATE TABLE entries (id INTEGER PRIMARY KEY, job INTEGER, "
                            "kind TEXT, body TEXT)")
        self.ledger.execute("CREATE TABLE deliveries (id INTEGER PRIMARY KEY, job INTEGER, "
                            "turn INTEGER, position INTEGER, ids BLOB)")
        self.rows = 0
        self.account = Account(JOB, False)
        self.chain = FakeChain()
        run = SimpleNamespace(chain=self.chain, accounts={JOB: self.account},
                              data_dir=self.folder, options=SimpleNamespace(whole_max=48))
        self.audit = Audit(run)

    def add(self, kind, fact):
        self.rows += 1
        self.ledger.execute("INSERT INTO entries VALUES (?, ?, ?, ?)",
                            (self.rows, JOB, kind, json.dumps({"v": 1, "fact": {kind: fact}})))
        self.ledger.commit()

    def deliver(self, position, count):
        self.rows += 1
        self.ledger.execute("INSERT INTO deliveries VALUES (?, ?, ?, ?, ?)",
                            (self.rows, JOB, 3, position, bytes(4 * count)))
        self.ledger.commit()

    def after_kill(self):
        asyncio.run(self.audit.after_kill(1))
        return self.audit.problems

    def finish(self):
        status = {"tokens_recorded": sum(map(len, self.audit.ledger.places.values())),
                  "tokens_confirmed": sum(tokens for tokens, _ in self.chain.made)}
        self.after_kill()
        status["tokens_recorded"] = self.audit.ledger.recorded(JOB)
        return asyncio.run(self.audit.finish(status))

    def test_the_running_total_is_read_out_of_a_content_id_too(self):
        # Proof bytes behind their first word; words of the claim before the text's offset.
        inline = bytes([1, 0x55, 0, 113]) + bytes(2) + (4321).to_bytes(8, "big") + bytes(103)
        text = b"u" + base64.urlsafe_b64encode(inline).rstrip(b"=")
        for version, argument in (("v4", 3), ("v5", 4), ("v6", 4), ("v7", 3)):
            words = [0] * argument + [32 * (argument + 1), len(text)]
            data = bytes(4) + b"".join(word.to_bytes(32, "big") for word in words) + text
            self.assertEqual(Shape(version).cumulative(data), 4321, version)

    def test_honest_books_pass(self):
        self.deliver(0, 250)
        self.account.seen = 258
        self.chain.made = [(100, 100), (110, 210)]
        self.add("job_closed", {"closing": 0, "unclaimable": 40, "forfeited": 0})
        result = self.finish()
        self.assertEqual(self.audit.problems, [])
        found = (result["double_claims"], result["lost_claims"], result["max_drift_tokens"])
        self.assertEqual(found, (0, 0, 8))

    def test_nine_tokens_of_one_kill_are_a_drift_and_eight_of_each_are_none(self):
        self.account.seen = 8
        self.assertEqual(self.after_kill(), [])
        self.account.seen = 16
        self.assertEqual(self.after_kill(), [])
        self.account.seen = 25
        self.assertIn("9 tokens written and not recorded", self.after_kill()[0])

    def test_more_recorded_than_any_client_saw_is_found(self):
        self.deliver(0, 10)
        self.account.seen = 9
        self.assertEqual(len(self.after_kill()), 1)

    def test_more_claimed_than_recorded_is_found_at_once(self):
        self.deliver(0, 150)
        self.account.seen = 150
        self.chain.made = [(100, 100), (100, 200)]
        self.assertIn("200 claimed, 150 recorded", self.after_kill()[0])

    def test_the_same_tokens_under_two_claims_are_a_double_claim(self):
        self.deliver(0, 250)
        self.account.seen = 250
        self.chain.made = [(100, 100), (100, 100)]
        self.assertEqual(self.finish()["double_claims"], 1)

    def test_a_hundred_tokens_left_are_lost_and_ninety_nine_a_tail(self):
        self.deliver(0, 200)
        self.account.seen = 200
        self.chain.made = [(101, 101)]
        self.assertEqual(self.finish()["lost_claims"], 0)
        self.chain.made = [(100, 100)]
        self.assertEqual(self.finish()["lost_claims"], 1)
        self.account.is_ended_by_client = True
        self.assertEqual(self.finish()["lost_claims"], 0)

    def test_entries_that_vanish_or_repeat_are_found(self):
        self.deliver(0, 10)
        self.deliver(10, 10)
        self.account.seen = 20
        self.after_kill()
        self.deliver(19, 2)
        self.after_kill()
        self.assertEqual(self.audit.ledger.faults, [f"job {JOB}: (3, 19) recorded twice"])
        self.ledger.execute("DELETE FROM deliveries WHERE id = 2")
        self.ledger.commit()
        self.after_kill()
        self.assertEqual(self.audit.ledger.faults[1:], ["3 entries became 2"])

    def test_a_session_that_never_ends_and_one_that_is_halted_are_found(self):
        self.deliver(0, 10)
        self.account.seen = 10
        self.chain.status = 0
        self.finish()
        self.assertIn("never completed", self.audit.problems[0])
        self.add("job_halted", {"why": "chain says 300"})
        self.finish()
        self.assertIn(f"job {JOB} halted: chain says 300", self.audit.problems)


if __name__ == "__main__":
    unittest.main()
