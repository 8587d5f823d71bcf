#!/usr/bin/env python3
"""A recording stand-in for `docker`: writes each call down and answers from a small state.

Found as `docker` on PATH by the tests of the deployment scripts. STAND_IN names a folder that holds
`scenario.json` ({"fail": [beginnings of calls], "health": {container: [states]}, ...}) and gets
`calls.log` and the files that were copied into containers. Never starts anything.
"""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

HOME = Path(os.environ["STAND_IN"])
SCENARIO = json.loads((HOME / "scenario.json").read_text())
STARTED_AT = "2026-01-01T00:00:00.000000000Z"


def fail(message):
    """Ends as docker does on an error."""
    print(f"Error response from daemon: {message}", file=sys.stderr)
    sys.exit(1)


def inside(container):
    """Where the copy of a container's binary is kept."""
    return HOME / f"{container}.binary"


def health(container):
    """The next of the container's states; the last one stays."""
    left = HOME / f"{container}.health"
    states = json.loads(left.read_text()) if left.exists() else (
        SCENARIO.get("health", {}).get(container, ["running healthy"]))
    left.write_text(json.dumps(states[1:] or states))
    return states[0]


def inspect(words):
    """`docker inspect --format F CONTAINER`."""
    form, container = words[1], words[2]
    if "StartedAt" in form:
        return STARTED_AT
    if "Running" in form:
        return str(container not in SCENARIO.get("stopped", [])).lower()
    return health(container)


def copy(words):
    """`docker cp FILE CONTAINER:PATH`."""
    container = words[1].split(":")[0]
    shutil.copy(words[0], inside(container))
    if container in SCENARIO.get("torn", []):
        inside(container).write_bytes(inside(container).read_bytes()[:-1])


def execute(words):
    """`docker exec CONTAINER sha256sum PATH`."""
    digest = hashlib.sha256(inside(words[0]).read_bytes()).hexdigest()
    return f"{digest}  {words[2]}"


def logs(words):
    """`docker logs --since T CONTAINER`."""
    return SCENARIO.get("log", {}).get(words[2], SCENARIO["default_log"])


def main():
    """One call."""
    words = sys.argv[1:]
    call = " ".join(words)
    with open(HOME / "calls.log", "a", encoding="utf-8") as log:
        print(call, file=log)
    if any(call.startswith(start) for start in SCENARIO.get("fail", [])):
        fail(f"the test wants this to fail: {call}")
    answers = {"inspect": inspect, "cp": copy, "exec": execute, "logs": logs}
    answer = answers.get(words[0], lambda _: None)(words[1:])
    if answer is not None:
        print(answer)


if __name__ == "__main__":
    main()
