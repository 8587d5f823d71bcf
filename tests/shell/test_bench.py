"""The benchmarks beside a peer: what they make of numbers, and that both sides get the same."""

import json
import math
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
import perplexity  # noqa: E402


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


class Perplexity(unittest.TestCase):
    """scripts/bench/perplexity.py."""

    def test_chunks_come_out_of_running_perplexities(self):
        each = [3.1, 3.5, 2.75]
        means = [sum(each[:n]) / n for n in (1, 2, 3)]
        said = "".join(f"[{n}]{math.exp(mean):.4f}," for n, mean in enumerate(means, 1))
        for wanted, found in zip(each, perplexity.surprises(said), strict=True):
            self.assertAlmostEqual(wanted, found, places=4)
        for broken in ("", "[2]20.0,", "[1]20.0,[3]20.0,"):
            with self.assertRaises(SystemExit):
                perplexity.surprises(broken)

    def test_the_error_is_that_of_the_paired_difference(self):
        # Texts differ a lot from chunk to chunk, the two programs by little in each.
        theirs = [2.0, 5.0, 3.0, 4.0]
        mine = [a + b for a, b in zip(theirs, [0.01, 0.02, 0.03, 0.02])]
        ratio, error = perplexity.ratio(mine, theirs)
        self.assertAlmostEqual(ratio, math.exp(0.02), places=5)
        self.assertAlmostEqual(error, math.exp(0.02) * math.sqrt(2e-4 / 3 / 4), places=5)
        self.assertEqual(perplexity.ratio(theirs, theirs), (1.0, 0.0))

    def test_the_line_has_both_forms_and_the_peers_own_difference(self):
        line_of = perplexity.figure([3.0, 3.0], {"on": [3.1, 3.1], "off": [2.9, 2.9]}, "m")
        self.assertEqual((line_of["peer"], line_of["chunks"], line_of["tokens"]),
                         (round(math.exp(2.9), 4), 2, 510))
        self.assertEqual(line_of["forms"]["on"]["ratio"], round(math.exp(-0.1), 5))
        self.assertEqual(line_of["forms"]["on_to_off"]["ratio"], round(math.exp(0.2), 5))


class Programs(unittest.TestCase):
    """engine.sh, perplexity.sh and soak.sh, with stand-ins for cargo, our programs and the peer."""

    FIGURE = 'echo "figure $*" >>"$LOG"; echo 30'
    BENCH = 'echo "peer $*" >>"$LOG"; echo \'{"avg_ts": 10, "speed_tg": 10}\''
    OURS = ('echo "ours $*" >>"$LOG"\n'
            'echo \'{"perplexity": 20.0, "surprise": [3.0, 3.0, 3.3]}\'')
    PEER = 'echo "peer $*" >>"$LOG"; echo "[1]20.0855,[2]20.0855,[3]22.1980,"'
    SOAK = 'echo "soak $*" >>"$LOG"; cat "$(dirname "$0")/soak.json"'

    def setUp(self):
        self.home = Path(tempfile.mkdtemp(prefix="tally-bench-"))
        self.addCleanup(shutil.rmtree, self.home)
        for name, lines in [("figure", self.FIGURE), ("llama-bench", self.BENCH),
                            ("llama-batched-bench", self.BENCH), ("perplexity", self.OURS),
                            ("llama-perplexity", self.PEER), ("soak", self.SOAK)]:
            self.program(name, lines)
        # What `cargo bench --no-run --message-format=json` says of the benchmark it built.
        self.program("cargo", 'while [ "$1" != --bench ]; do shift; done\n'
                     'printf \'{"reason": "compiler-artifact", "target": {"name": "%s"}, '
                     '"executable": "%s"}\\n\' "$2" "$(dirname "$0")/$2"')
        (self.home / "soak.json").write_text(json.dumps({
            "leaked_blocks": 0, "answers_that_differ": 0, "errors": 0, "slowest_to_mean": 0.9,
            "rss_mib_early": 100, "rss_mib_end": 101}))
        (self.home / "models").mkdir()
        for name in ("b.gguf", "a.gguf", "quantize.log"):
            (self.home / "models" / name).touch()

    def program(self, name, lines):
        """A shell program in the test's folder."""
        (self.home / name).write_text(f"#!/bin/sh\n{lines}\n")
        (self.home / name).chmod(0o755)

    def call(self, script, *options):
        """The finished process, and the stand-ins' calls."""
        log = self.home / "calls.log"
        log.unlink(missing_ok=True)
        environment = {**os.environ, "PEER": str(self.home), "LOG": str(log),
                       "PATH": f"{self.home}:{os.environ['PATH']}"}
        done = subprocess.run([str(BENCH / script), *options], capture_output=True, text=True,
                              env=environment, check=False)
        return done, log.read_text().splitlines() if log.exists() else []

    def model(self, name):
        """A model's path."""
        return str(self.home / "models" / name)

    def test_the_files_of_a_folder_are_measured_one_after_the_other(self):
        done, calls = self.call("engine.sh", "--models", str(self.home / "models"), "--runs", "2",
                                "--threads", "3", "--isa", "avx2", "decode-0", "batch-8")
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = [json.loads(text) for text in done.stdout.splitlines()]
        self.assertEqual([(each["model"], each["figure"]) for each in lines], [
            ("a.gguf", "decode-0"), ("a.gguf", "batch-8"),
            ("b.gguf", "decode-0"), ("b.gguf", "batch-8")])
        self.assertEqual([(each["ratio"], each["runs"], each["isa"]) for each in lines],
                         [(3.0, 2, "avx2")] * 4)
        ours = [call for call in calls if call.startswith("figure")]
        self.assertEqual(ours[0], f"figure {self.model('a.gguf')} 3 decode-0 avx2")
        self.assertEqual(len(ours), 8)

    def test_a_file_may_be_given_again_and_all_figures_are_the_default(self):
        done, _ = self.call("engine.sh", "--model", self.model("b.gguf"), "--model",
                            self.model("a.gguf"), "--runs", "1")
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = [json.loads(text) for text in done.stdout.splitlines()]
        self.assertEqual([each["model"] for each in lines], ["b.gguf"] * 5 + ["a.gguf"] * 5)

    def test_perplexity_reads_the_same_text_with_both_sides(self):
        done, calls = self.call("perplexity.sh", "--model", self.model("a.gguf"), "--chunks", "3")
        self.assertEqual(done.returncode, 0, done.stderr)
        found = json.loads(done.stdout)
        self.assertEqual((found["model"], found["chunks"], found["tokens"]), ("a.gguf", 3, 765))
        self.assertEqual(found["forms"]["on"]["error"], 0.0)
        text = str(ROOT / "crates/engine/tests/fixtures/reference/eighty-days.txt")
        self.assertEqual(calls[0], f"ours {self.model('a.gguf')} 2 {text} 3")
        self.assertEqual([call.split(" -fa ")[1] for call in calls[1:]],
                         ["on --chunks 3", "off --chunks 3"])
        self.assertTrue(all(f"-f {text} -c 512" in call for call in calls[1:]), calls)

    def test_sides_that_read_other_chunks_are_not_compared(self):
        self.program("llama-perplexity", 'echo "[1]20.0,"')
        done, _ = self.call("perplexity.sh", "--model", self.model("a.gguf"))
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("do not read the text alike", done.stderr)
        self.assertEqual(done.stdout, "")

    def test_a_soak_takes_its_numbers_and_fails_on_a_leak(self):
        options = ("--model", self.model("a.gguf"), "--minutes", "2", "--seed", "7")
        done, calls = self.call("soak.sh", *options)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(calls, [f"soak {self.model('a.gguf')} 2 120 7"])
        found = json.loads(done.stdout)
        (self.home / "soak.json").write_text(json.dumps({**found, "leaked_blocks": 1}))
        done, _ = self.call("soak.sh", *options)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(json.loads(done.stdout)["leaked_blocks"], 1)

    def test_wrong_options_of_every_script_are_named_and_nothing_is_run(self):
        (self.home / "none").mkdir()
        for script in ("engine.sh", "perplexity.sh", "server.sh", "soak.sh"):
            for options, words in [
                    (("--thread", "2"), "unknown option: --thread "),
                    (("fast",), "unknown option: fast "),
                    (("--threads", "0"), "--threads wants a whole number"),
                    (("--threads",), "--threads wants a whole number"),
                    (("--model", "/nowhere.gguf"), "--model wants a file")]:
                with self.subTest(script=script, options=options):
                    done, calls = self.call(script, *options)
                    self.assertEqual((done.returncode, calls), (1, []))
                    self.assertIn(words, done.stderr)
        for options, words in [
                (("--isa", "neon"), "--isa wants one of scalar, avx2, avx512"),
                (("--models", str(self.home / "none")), "--models wants a folder"),
                (("prefill-0",), "unknown option: prefill-0"),
                (("--runs", "1000"), "--runs wants a whole number")]:
            with self.subTest(options=options):
                done, calls = self.call("engine.sh", *options)
                self.assertEqual((done.returncode, calls), (1, []))
                self.assertIn(words, done.stderr)

    def test_help_is_the_scripts_own_head(self):
        for script in ("engine.sh", "perplexity.sh", "server.sh", "soak.sh"):
            done, calls = self.call(script, "--help")
            self.assertEqual((done.returncode, calls), (0, []))
            self.assertIn(f"scripts/bench/{script} [--model FILE", done.stdout)
            self.assertNotIn("set -euo", done.stdout)


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
