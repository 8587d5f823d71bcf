"""The deployment scripts against a recording stand-in for docker: order of calls, every failure.

No daemon and no network. `sleep` is a stand-in too, so nothing waits.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
STAND_IN = Path(__file__).resolve().parent / "docker_stand_in.py"
RESTART = ROOT / "restart-and-deploy.sh"
BINARY_ONLY = ROOT / "deploy-binary.sh"
NODES = ["llm-node-prod-1", "llm-node-prod-2"]
VERSION_LINE = "INFO VERSION 0.1.0 commit abc1234 built 2026-01-01"
STATE = "inspect --format {{.State.Status}} {{.State.Health.Status}}"


class DeployCase(unittest.TestCase):
    """A folder with stand-ins on PATH and a binary that knows its version."""

    def setUp(self):
        self.home = Path(tempfile.mkdtemp(prefix="tally-deploy-"))
        self.addCleanup(shutil.rmtree, self.home)
        self.path = self.home / "bin"
        self.path.mkdir()
        # This very interpreter, without site packages: a call takes milliseconds.
        self.program(self.path / "docker", f'exec "{sys.executable}" -ES "{STAND_IN}" "$@"')
        self.program(self.path / "sleep", "exit 0")
        self.binary = self.home / "tally"
        self.program(self.binary, 'echo "tally 0.1.0 (abc1234 2026-01-01)"')

    @staticmethod
    def program(path, line):
        """A small shell program."""
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def run_script(self, script, *options, **scenario):
        """Runs a script in a scenario; (status, standard error, calls)."""
        scenario.setdefault("default_log", VERSION_LINE)
        (self.home / "scenario.json").write_text(json.dumps(scenario))
        for left in [*self.home.glob("*.health"), *self.home.glob("calls.log")]:
            left.unlink()
        environment = {**os.environ, "PATH": f"{self.path}:{os.environ['PATH']}",
                       "STAND_IN": str(self.home)}
        command = [str(script), "--binary", str(self.binary), *options]
        done = subprocess.run(command, capture_output=True, text=True, env=environment,
                              check=False)
        log = self.home / "calls.log"
        calls = log.read_text().splitlines() if log.exists() else []
        return done.returncode, done.stderr, calls

    def into(self, node):
        """The calls that bring the binary into one node, in order."""
        inside = "/usr/local/bin/tally"
        return [f"cp {self.binary} {node}:{inside}", f"exec {node} sha256sum {inside}",
                f"restart {node}", f"{STATE} {node}",
                f"inspect --format {{{{.State.StartedAt}}}} {node}",
                f"logs --since 2026-01-01T00:00:00.000000000Z {node}"]

    def assert_fails(self, script, message, *options, untouched=(), **scenario):
        """The script ends with status 1 and the message; some nodes were never restarted."""
        status, stderr, calls = self.run_script(script, *options, **scenario)
        self.assertEqual(status, 1, stderr)
        self.assertIn(message, stderr)
        for node in untouched:
            self.assertNotIn(f"restart {node}", calls)


class RestartAndDeploy(DeployCase):
    """restart-and-deploy.sh."""

    def test_both_nodes_are_stopped_started_and_given_the_binary_in_order(self):
        status, stderr, calls = self.run_script(RESTART)
        self.assertEqual(status, 0, stderr)
        both = " ".join(NODES)
        wanted = ["version", "compose version", f"compose stop {both}",
                  f"compose up --detach --force-recreate --no-build {both}",
                  *self.into(NODES[0]), *self.into(NODES[1])]
        self.assertEqual(calls, wanted)

    def test_every_failed_call_is_a_failure_with_its_name(self):
        for call, message in [
            ("version", "the Docker daemon does not answer"),
            ("compose version", "docker compose is missing"),
            ("compose stop", "docker compose stop failed"),
            ("compose up", "docker compose up failed"),
            (f"cp {self.binary} {NODES[0]}", f"{NODES[0]}: docker cp failed"),
            (f"cp {self.binary} {NODES[1]}", f"{NODES[1]}: docker cp failed"),
            (f"exec {NODES[0]}", f"{NODES[0]}: cannot read the hash"),
            (f"exec {NODES[1]}", f"{NODES[1]}: cannot read the hash"),
            (f"restart {NODES[0]}", f"{NODES[0]}: docker restart failed"),
            (f"restart {NODES[1]}", f"{NODES[1]}: docker restart failed"),
            (f"{STATE} {NODES[0]}", f"{NODES[0]}: docker inspect failed"),
            ("inspect --format {{.State.StartedAt}}", f"{NODES[0]}: docker inspect failed"),
            ("logs", f"{NODES[0]}: docker logs failed"),
        ]:
            with self.subTest(call):
                self.assert_fails(RESTART, message, fail=[call])

    def test_nothing_is_stopped_before_the_inputs_are_known_to_be_good(self):
        for message, options in [
            ("no binary at", ["--binary", "/nowhere/tally"]),
            ("unknown option: --force", ["--force"]),
            ("--timeout wants seconds", ["--timeout", "soon"]),
            ("--expect wants a value", ["--expect"]),
        ]:
            with self.subTest(message):
                status, stderr, calls = self.run_script(RESTART, *options)
                self.assertEqual(status, 1)
                self.assertIn(message, stderr)
                self.assertFalse([call for call in calls if "compose" in call], calls)

    def test_a_binary_that_cannot_tell_its_version_is_refused_unless_told(self):
        self.program(self.binary, "exit 126")
        self.assert_fails(RESTART, "name what its VERSION line holds", untouched=NODES)
        status, stderr, _ = self.run_script(RESTART, "--expect", "0.1.0 abc1234")
        self.assertEqual(status, 0, stderr)


class DeployBinary(DeployCase):
    """deploy-binary.sh."""

    def test_each_node_is_well_before_the_next_is_touched(self):
        status, stderr, calls = self.run_script(BINARY_ONLY)
        self.assertEqual(status, 0, stderr)
        running = [f"inspect --format {{{{.State.Running}}}} {node}" for node in NODES]
        wanted = ["version", *running, *self.into(NODES[0]), *self.into(NODES[1])]
        self.assertEqual(calls, wanted)

    def test_a_torn_copy_is_found_by_its_hash(self):
        self.assert_fails(BINARY_ONLY, "/usr/local/bin/tally has SHA-256", torn=[NODES[0]],
                          untouched=NODES)
        self.assert_fails(BINARY_ONLY, f"{NODES[1]}: /usr/local", torn=[NODES[1]],
                          untouched=[NODES[1]])

    def test_a_node_that_is_not_running_stops_it_before_anything_is_copied(self):
        self.assert_fails(BINARY_ONLY, f"{NODES[1]}: is not running", stopped=[NODES[1]],
                          untouched=NODES)
        self.assert_fails(BINARY_ONLY, "there is no such container", untouched=NODES,
                          fail=["inspect --format {{.State.Running}}"])

    def test_health_is_waited_for_and_a_sick_node_is_a_failure(self):
        first = NODES[0]
        slow = ["running starting"] * 5 + ["running healthy"]
        status, stderr, calls = self.run_script(BINARY_ONLY, health={first: slow})
        self.assertEqual(status, 0, stderr)
        self.assertEqual(calls.count(f"{STATE} {first}"), 6)
        for states, message in [
            (["running starting", "running unhealthy"], "is running unhealthy, wanted"),
            (["exited unhealthy"], "is exited unhealthy, wanted"),
            (["restarting starting"], "is restarting starting, wanted"),
            (["running starting"], "still running starting after 7 s"),
        ]:
            with self.subTest(message):
                self.assert_fails(BINARY_ONLY, message, "--timeout", "7",
                                  health={first: states}, untouched=[NODES[1]])

    def test_the_version_line_must_name_version_and_commit(self):
        for log, message in [
            ("INFO ready", "no VERSION line"),
            (VERSION_LINE.replace("0.1.0", "0.0.9"), "lacks '0.1.0'"),
            (VERSION_LINE.replace("abc1234", "0000000"), "lacks 'abc1234'"),
        ]:
            with self.subTest(message):
                self.assert_fails(BINARY_ONLY, message, log={NODES[0]: log},
                                  untouched=[NODES[1]])

    def test_help_is_shown_and_touches_nothing(self):
        for script in (RESTART, BINARY_ONLY):
            status, _, calls = self.run_script(script, "--help")
            self.assertEqual((status, calls), (0, []))


if __name__ == "__main__":
    unittest.main()
