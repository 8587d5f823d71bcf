"""What all benchmarks beside a peer share: a figure's line, and how a command is run.

A shared machine drifts, so the two sides are measured in turn and what counts is the ratio of the
medians. Where the peer has several forms, the better one counts, figure by figure.
"""

import os
import subprocess
from statistics import median


def best(forms, more_is_better=True):
    """The peer's form with the better median: its name and its values."""
    pick = max if more_is_better else min
    name = pick(forms, key=lambda name: median(forms[name]))
    return name, forms[name]


def line(figure, mine, theirs, **more):
    """A figure as a JSON object.

    ours, peer  medians
    ratio       ours / peer, also where less is better
    runs        of each
    spread      lowest and highest of ours, then of the peer
    """
    return {
        "figure": figure,
        "ours": round(median(mine), 2),
        "peer": round(median(theirs), 2),
        "ratio": round(median(mine) / median(theirs), 3),
        "runs": len(mine),
        "spread": [round(x, 1) for x in (min(mine), max(mine), min(theirs), max(theirs))],
        **more,
    }


def run(command):
    """What a command prints; its errors end the benchmark."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-2000:]
        raise SystemExit(f"{' '.join(command)}: status {done.returncode}\n{said}")
    return done.stdout
