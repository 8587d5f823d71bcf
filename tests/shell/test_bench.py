"""The benchmarks beside a peer: what they make of numbers, and that both sides get the same."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "scripts" / "bench"
sys.path.insert(0, str(BENCH))

from figures import best, line  # noqa: E402


class Figures(unittest.TestCase):
    """scripts/bench/figures.py."""

    def test_the_peers_better_form_is_the_faster_or_the_smaller_one(self):
        forms = {False: [1, 9, 2], True: [3, 3, 3]}
        self.assertEqual(best(forms), (True, [3, 3, 3]))
        self.assertEqual(best(forms, more_is_better=False), (False, [1, 9, 2]))

    def test_a_line_is_medians_their_ratio_and_both_spreads(self):
        self.assertEqual(
            line("f", [3, 1, 2.0], [8, 4, 5], model="m"),
            {"figure": "f", "ours": 2.0, "peer": 5, "ratio": 0.4, "runs": 3,
             "spread": [1, 3, 4, 8], "model": "m"})


class Servers(unittest.TestCase):
    """scripts/bench/server.sh, with stand-ins for both servers."""

    def setUp(self):
        self.home = Path(tempfile.mkdtemp(prefix="tally-bench-"))
        self.addCleanup(shutil.rmtree, self.home)
        for name in ("tally", "llama-server"):
            shutil.copy(ROOT / "tests/shell/fake_server.py", self.home / name)
        (self.home / "log").mkdir()
        (self.home / "model.gguf").touch()

    def measure(self, fault="", options=("--runs", "2", "--clients", "3", "--requests", "6")):
        """The finished process."""
        environment = {
            **os.environ, "PEER": str(self.home), "TALLY": str(self.home / "tally"),
            "FAKE_LOG": str(self.home / "log"), "FAKE_FAULT": fault}
        return subprocess.run(
            [str(BENCH / "server.sh"), "--model", str(self.home / "model.gguf"), *options],
            capture_output=True, text=True, env=environment, check=False)

    def test_every_figure_is_told_and_both_sides_have_the_same_room(self):
        done = self.measure()
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = [json.loads(text) for text in done.stdout.splitlines()]
        self.assertEqual([each["figure"] for each in lines], [
            "server-tok_s", "server-ttft_p50_ms", "server-itl_p95_ms", "later-turn-ttft_ms",
            "rss_peak_mib", "ready_s"])
        for each in lines:
            self.assertEqual((each["runs"], each["model"]), (2, "model.gguf"))
            self.assertGreater(each["ours"], 0, each)
            self.assertGreater(each["ratio"], 0, each)
        starts = [json.loads(path.read_text()) for path in sorted((self.home / "log").iterdir())]
        peers = [start for start in starts if "-np" in start]
        ours = [start for start in starts if "serve" in start][1:]  # the first is asked for sizes
        self.assertEqual((len(ours), len(peers)), (2, 4), "in each run ours and both forms")
        self.assertEqual([start[start.index("-fa") + 1] for start in peers],
                         ["off", "on", "off", "on"])
        for start in peers:
            self.assertEqual(start[start.index("-c") + 1], str(3 * 2048))
            self.assertEqual(start[start.index("-np") + 1], "3")
        for start in ours:
            blocks = int(start[start.index("--engine-kv-memory-bytes") + 1]) // 1_000
            self.assertGreaterEqual(blocks * 16, 3 * 2048)
            self.assertLess(blocks * 16, 3 * 2048 * 1.01)
            self.assertEqual(start[start.index("--engine-running-max") + 1], "3")

    def test_a_server_that_fails_ends_the_measuring_by_name(self):
        for fault, words in [("dies", "did not come up:\nno such model"),
                             ("refuses", "HTTP 400"),
                             ("short", "tokens were asked for")]:
            with self.subTest(fault):
                done = self.measure(fault)
                self.assertNotEqual(done.returncode, 0)
                self.assertIn(words, done.stderr)
                self.assertEqual(done.stdout, "")

    def test_wrong_options_are_named(self):
        self.assertIn("--runs wants", self.measure(options=["--runs", "0"]).stderr)
        self.assertIn("unknown option: --rums", self.measure(options=["--rums", "1"]).stderr)


if __name__ == "__main__":
    unittest.main()
