#!/usr/bin/env python3
"""Checks bans, licences and sources of deny.toml without cargo-deny.

    scripts/check-deps.py [--deny FILE] [--root DIR]

What is built comes from `cargo tree`, which knows features exactly (`cargo metadata` lists crates
behind features that nobody switched on); licence and source of each come from `cargo metadata`.
Advisories need a database and are cargo-deny's alone. Exits 1 on any finding and names it.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # before Python 3.11; pip carries the same parser
    from pip._vendor import tomli as tomllib


def cargo(root, *arguments):
    """Standard output of one cargo command; its failure is ours."""
    command = ["cargo", *arguments, "--locked"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"check-deps: {' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def built_packages(root, targets):
    """(name, version) of every package in the build of any target, dev-dependencies included."""
    found = set()
    for target in targets:
        tree = cargo(root, "tree", "--workspace", "--prefix", "none",
                     "--format", "{p}", "--target", target)
        for line in filter(None, tree.splitlines()):
            name, version = line.split()[:2]
            found.add((name, version.removeprefix("v")))
    return found


class Licence:
    """A licence expression against a list of allowed names: `OR` needs one, `AND` needs both."""

    def __init__(self, expression, allowed):
        # "MIT/Apache-2.0" is how older crates write OR.
        text = expression.replace("/", " OR ")
        text = re.sub(r"\s+WITH\s+", "~WITH~", text)
        self.words = re.findall(r"[()]|[^\s()]+", text)
        self.allowed = allowed

    def is_allowed(self):
        """Whether the whole expression is satisfied."""
        return self._either() and not self.words

    def _either(self):
        result = self._both()
        while self.words and self.words[0] == "OR":
            self.words.pop(0)
            right = self._both()
            result = result or right
        return result

    def _both(self):
        result = self._one()
        while self.words and self.words[0] == "AND":
            self.words.pop(0)
            right = self._one()
            result = result and right
        return result

    def _one(self):
        if not self.words:
            return False
        word = self.words.pop(0)
        if word == "(":
            result = self._either()
            return bool(self.words) and self.words.pop(0) == ")" and result
        return word.replace("~WITH~", " WITH ") in self.allowed


def licence_finding(package, rules):
    """Why the package's licence does not fit, or None."""
    allowed = set(rules.get("allow", []))
    for exception in rules.get("exceptions", []):
        if exception.get("crate", exception.get("name")) == package["name"]:
            allowed.update(exception["allow"])
    expression = package["license"]
    if not expression:
        return "names no licence"
    if not Licence(expression, allowed).is_allowed():
        return f"licence {expression} is not on the list"
    return None


def findings(packages, deny):
    """Every violation of deny.toml among the built packages, as text."""
    banned = {rule.get("crate", rule.get("name")) for rule in deny["bans"].get("deny", [])}
    registries = {f"registry+{url}" for url in deny["sources"].get("allow-registry", [])}
    for package in packages:
        name = f"{package['name']} {package['version']}"
        if package["name"] in banned:
            yield f"{name}: banned"
        source = package["source"]
        if source is not None and source not in registries:
            yield f"{name}: comes from {source}"
        why = licence_finding(package, deny["licenses"])
        if why:
            yield f"{name}: {why}"
        if source is None:
            for dependency in package["dependencies"]:
                # Cargo writes "*" for a path dependency without a version.
                if dependency["req"] == "*" and not dependency.get("path"):
                    yield f"{name}: depends on any version of {dependency['name']}"


def main():
    """Command line."""
    here = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=here, help="the workspace")
    parser.add_argument("--deny", type=Path, help="deny.toml (default: the workspace's)")
    options = parser.parse_args()
    deny = tomllib.loads((options.deny or options.root / "deny.toml").read_text())
    built = built_packages(options.root, deny["graph"]["targets"])
    metadata = json.loads(cargo(options.root, "metadata", "--format-version", "1"))
    packages = [p for p in metadata["packages"] if (p["name"], p["version"]) in built]
    if len(packages) != len(built):
        sys.exit(f"check-deps: {len(built)} packages built, metadata knows {len(packages)}")
    found = sorted(findings(packages, deny))
    for line in found:
        print(f"check-deps: {line}", file=sys.stderr)
    print(f"check-deps: {len(packages)} packages, {len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
