"""Our engine and llama.cpp in turn, figure by figure, round by round.

Run by scripts/bench/engine.sh. A shared machine drifts: the two run one after the other in every
round, and what counts is the ratio of the medians. Of the peer's two forms, with and without flash
attention, the faster counts. One JSON line to a figure:

  figure, isa, model   what was measured
  ours, peer           median tokens a second
  ratio                ours / peer
  runs                 of each
  spread               lowest and highest of ours, then of the peer
  peer_flash           whether the peer's faster form was the one with flash attention
"""

import argparse
import json
import sys
from pathlib import Path

from figures import best, line, run

FIGURES = ("decode-0", "decode-512", "decode-1024", "prefill-512", "batch-8")
STEPS = 64  # as in benches/figure.rs
CHUNK = 128


def ours(options, figure):
    """Tokens a second of our engine."""
    command = [options.figure, options.model, str(options.threads), figure]
    if options.isa:
        command.append(options.isa)
    return float(run(command))


def peer(options, figure, flash):
    """Tokens a second of llama.cpp, with or without flash attention."""
    work, size = figure.split("-")
    bench, batched = (str(Path(options.peer) / name) for name in
                      ("llama-bench", "llama-batched-bench"))
    threads = str(options.threads)
    if work == "batch":
        command = [batched, "-m", options.model, "-t", threads, "-c", "16384", "-b", "2048",
                   "-ub", "512", "-npp", str(CHUNK), "-ntg", str(STEPS), "-npl", size,
                   "-fa", "on" if flash else "off", "--output-format", "jsonl"]
        key = "speed_tg"
    else:
        shape = {"decode": ["-p", "0", "-n", str(STEPS), "-d", size],
                 "prefill": ["-p", size, "-n", "0"]}[work]
        command = [bench, "-m", options.model, "-t", threads, *shape, "-r", "1",
                   "-fa", str(int(flash)), "-o", "jsonl"]
        key = "avg_ts"
    lines = [line for line in run(command).splitlines() if line.startswith("{")]
    return float(json.loads(lines[-1])[key])


def measure(options, figure):
    """One figure, as a JSON object."""
    mine, theirs = [], {False: [], True: []}
    for _ in range(options.runs):
        mine.append(ours(options, figure))
        for flash, speeds in theirs.items():
            speeds.append(peer(options, figure, flash))
    flash, speeds = best(theirs)
    return line(figure, mine, speeds, isa=options.isa or "best", model=Path(options.model).name,
                peer_flash=flash)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", required=True, help="our program, benches/figure.rs")
    parser.add_argument("--peer", required=True, help="folder of llama.cpp's programs")
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--isa", default="")
    parser.add_argument("figures", nargs="*", default=FIGURES)
    options = parser.parse_args()
    for figure in options.figures or FIGURES:
        print(json.dumps(measure(options, figure)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
