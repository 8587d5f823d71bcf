"""docker-compose.yml, Dockerfile and .dockerignore: by schema, and by what deployment relies on.

No daemon: the files are read, not run. scripts/test-docker.sh runs them where a daemon is.
"""

import copy
import fnmatch
import json
import re
import unittest
from pathlib import Path

import jsonschema
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
SCHEMA = Path(__file__).resolve().parent / "compose-schema" / "compose-spec.json"
NODES = ["llm-node-prod-1", "llm-node-prod-2"]


def interpolated(value):
    """The value with every ${NAME:-default} replaced by its default, as without environment."""
    if isinstance(value, dict):
        return {key: interpolated(item) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolated(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)
    return value


def compose():
    """The compose file as docker would see it."""
    return interpolated(yaml.safe_load((ROOT / "docker-compose.yml").read_text()))


def stages():
    """{stage: its lines} of the Dockerfile, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    found, name = {}, None
    for line in text.splitlines():
        start = re.match(r"FROM (\S+) AS (\S+)", line)
        if start:
            name = start[2]
            found[name] = [line]
        elif name and line.strip() and not line.lstrip().startswith("#"):
            found[name].append(line)
    return found


def is_admitted(path):
    """Whether .dockerignore lets a path into the build context; the last rule that matches wins."""
    admitted = True
    parents = [str(p) for p in Path(path).parents if str(p) != "."]
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        rule = rule.strip()
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.lstrip("!")
        names = [path, *parents]
        if pattern.startswith("**/"):
            hit = any(fnmatch.fnmatch(part, pattern[3:]) for part in Path(path).parts)
        elif pattern == "*":
            hit = True
        else:
            hit = any(fnmatch.fnmatch(name, pattern) for name in names)
        if hit:
            admitted = rule.startswith("!")
    return admitted


class Compose(unittest.TestCase):
    """docker-compose.yml."""

    def validate(self, body):
        """Checks a body against the schema."""
        jsonschema.Draft201909Validator(json.loads(SCHEMA.read_text())).validate(body)

    def test_the_file_follows_the_schema(self):
        # `x-…` is an extension point and its anchors are merged by YAML itself.
        self.validate(compose())

    def test_the_schema_would_refuse_a_mistake(self):
        for path, value in [
            (("services", NODES[0], "ports"), 8080),
            (("services", NODES[0], "restarts"), "always"),
            (("services", NODES[0], "depends_on", "model", "condition"), "service_done"),
            (("services", NODES[0], "healthcheck"), {"tests": ["CMD", "true"]}),
            (("volume",), {}),
        ]:
            with self.subTest(path):
                body = copy.deepcopy(compose())
                place = body
                for key in path[:-1]:
                    place = place[key]
                place[path[-1]] = value
                with self.assertRaises(jsonschema.ValidationError):
                    self.validate(body)

    def test_each_node_has_its_own_name_key_port_and_ledger(self):
        services = compose()["services"]
        first, second = (services[name] for name in NODES)
        for name in NODES:
            self.assertEqual(services[name]["container_name"], name)
        self.assertEqual(first["env_file"][0], second["env_file"][0], "one chain")
        self.assertNotEqual(first["env_file"][1], second["env_file"][1], "two keys")
        self.assertNotEqual(first["ports"], second["ports"])
        ledgers = [[v for v in node["volumes"] if v.endswith(":/var/lib/tally")]
                   for node in (first, second)]
        self.assertEqual([len(ledger) for ledger in ledgers], [1, 1])
        self.assertNotEqual(*ledgers)
        for node in (first, second):
            self.assertIn("models:/models:ro", node["volumes"])

    def test_named_volumes_are_declared_and_dependencies_exist(self):
        body = compose()
        for service in body["services"].values():
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                if not source.startswith((".", "/")):
                    self.assertIn(source, body["volumes"])
            for dependency in service.get("depends_on", {}):
                self.assertIn(dependency, body["services"])

    def test_build_targets_are_stages_of_the_dockerfile(self):
        for service in compose()["services"].values():
            self.assertIn(service["build"]["target"], stages())

    def test_a_node_is_given_longer_than_its_own_grace(self):
        for name in NODES:
            seconds = int(compose()["services"][name]["stop_grace_period"].rstrip("s"))
            self.assertGreater(seconds, 30)

    def test_the_development_chain_is_no_part_of_a_plain_up_and_stays_on_loopback(self):
        chain = compose()["services"]["chain"]
        self.assertEqual(chain["profiles"], ["dev"])
        for port in chain["ports"]:
            self.assertTrue(port.startswith("127.0.0.1:"), port)

    def test_no_key_stands_in_a_tracked_file(self):
        files = [ROOT / "docker-compose.yml", *(ROOT / "deploy").glob("*.example")]
        self.assertGreater(len(files), 2)
        for file in files:
            self.assertIsNone(re.search(r"\b(0x)?[0-9a-fA-F]{64}\b", file.read_text()), file)


class Settings(unittest.TestCase):
    """What the containers are told."""

    def test_every_variable_is_one_that_the_node_or_our_scripts_know(self):
        known = set(re.findall(r"TALLY_[A-Z_]+[A-Z]", (ROOT / "docs/config.md").read_text()))
        ours = ("TALLY_SCRIPT_", "TALLY_BUILD_", "TALLY_ROOT")
        files = [ROOT / "Dockerfile", ROOT / "docker-compose.yml", ROOT / "scripts/test-docker.sh",
                 *(ROOT / "deploy").glob("*.example")]
        self.assertGreater(len(known), 20)
        for file in files:
            for name in re.findall(r"TALLY_[A-Z_]+[A-Z]", file.read_text()):
                with self.subTest(file=file.name, name=name):
                    self.assertTrue(name in known or name.startswith(ours))


class Image(unittest.TestCase):
    """Dockerfile and .dockerignore."""

    def test_both_images_run_as_a_user_without_rights(self):
        runtime = stages()["runtime"]
        self.assertIn("USER tally", runtime)
        for stage in ("node", "prebuilt"):
            self.assertTrue(stages()[stage][0].startswith("FROM runtime AS"))
            self.assertNotIn("USER root", stages()[stage])

    def test_the_users_home_is_a_folder_of_its_own_that_it_may_write(self):
        # The node keeps its wallet's lock under the home folder.
        setup = next(line for line in stages()["runtime"] if "useradd" in line)
        home = re.search(r"--home-dir (\S+)", setup)[1]
        self.assertRegex(setup, rf"install -d -o tally -g tally -m 0750 {home}( |$)")
        self.assertIn(f'VOLUME ["{home}"]', stages()["runtime"])

    def test_the_development_chain_starts_without_installing_its_tools_again(self):
        install = next(line for line in stages()["devchain"] if "npm ci" in line)
        self.assertRegex(install, r"cat package.json package-lock.json > node_modules/.tally-pins$")
        tools = (ROOT / "scripts/lib/tools.sh").read_text()
        self.assertIn('cat "$folder/package.json" "$folder/package-lock.json"', tools)
        self.assertIn("node_modules/.tally-pins", tools)

    def test_the_health_check_asks_for_a_status_and_reads_the_answer(self):
        check = next(line for line in stages()["runtime"] if line.startswith("HEALTHCHECK"))
        for part in ("curl -fsS", "/health", '"(healthy|degraded)"', "exit 1"):
            self.assertIn(part, check)
        self.assertTrue(any("curl" in line for line in stages()["runtime"] if "apt-get" in line))

    def test_the_default_stage_is_the_node_from_source(self):
        self.assertEqual(list(stages())[-1], "node")
        self.assertIn("COPY --from=build", stages()["node"][-1])

    def test_what_is_copied_exists_and_is_in_the_context(self):
        for stage, lines in stages().items():
            for line in lines:
                if not line.startswith("COPY ") or "--from" in line:
                    continue
                for source in line.split()[1:-1]:
                    optional = source.endswith("*")
                    with self.subTest(stage=stage, source=source):
                        self.assertTrue(is_admitted(source.rstrip("*")), "not in the context")
                        built = source.startswith("target/")
                        self.assertTrue(optional or built or (ROOT / source).exists())

    def test_the_context_admits_the_binary_and_no_secret(self):
        for path in ("target/release/tally", "src/main.rs", "crates/engine/src/lib.rs",
                     "contracts/abi/JobMarketplace.json", "Cargo.lock"):
            self.assertTrue(is_admitted(path), path)
        for path in ("deploy/node-1.env", ".env", ".git/config", "target/debug/tally",
                     "tools/node_modules/a.js", "deploy/node-1/keystore.json", "src/.env",
                     "models/a.gguf", "crates/engine/a.gguf"):
            self.assertFalse(is_admitted(path), path)


if __name__ == "__main__":
    unittest.main()
