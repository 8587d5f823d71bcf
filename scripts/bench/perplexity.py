"""Our perplexity and llama.cpp's on one text, chunk by chunk.

Run by scripts/bench/perplexity.sh. Both programs predict the same tokens of the same chunks, so
what tells them apart is the difference of their surprise (nats a token) in each chunk: it varies
far less than the surprise itself. Its mean over the chunks gives the ratio of the perplexities,
its standard deviation the ratio's standard error. One JSON line:

  figure, model   what was measured
  ours, peer      perplexities; of the peer's two forms, with and without flash attention, the lower
  ratio           ours / peer
  runs, spread    as in scripts/bench/pairs.py; nothing here is a matter of speed, so one run each
  chunks, tokens  chunks read, tokens predicted in them
  forms           by the peer's -fa: its perplexity, our ratio to it and the ratio's standard error;
                  `on_to_off` is the peer's own one form to its other
"""

import argparse
import json
import math
import re
import sys
from pathlib import Path
from statistics import mean, stdev

from figures import run

PREDICTED = 255  # of each chunk of 512, as in benches/perplexity.rs


def surprises(said):
    """Each chunk's mean surprise, from llama-perplexity's running perplexities."""
    running = [(int(at), float(value)) for at, value in re.findall(r"\[(\d+)\]([0-9.]+),", said)]
    if not running or [at for at, _ in running] != list(range(1, len(running) + 1)):
        raise SystemExit(f"llama-perplexity gave no running perplexities:\n{said[-1000:]}")
    totals = [0.0, *(at * math.log(value) for at, value in running)]
    return [after - before for before, after in zip(totals, totals[1:])]


def ratio(mine, theirs):
    """Ratio of two perplexities and its standard error, from their surprises chunk by chunk."""
    differences = [a - b for a, b in zip(mine, theirs, strict=True)]
    found = math.exp(mean(differences))
    error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
    return round(found, 5), round(found * error, 5)


def figure(mine, theirs, model):
    """The line; `theirs` are the surprises of the peer's forms by name."""
    perplexity = {name: math.exp(mean(of)) for name, of in theirs.items()}
    ours, best = math.exp(mean(mine)), min(perplexity.values())
    forms = {}
    for name, of in theirs.items():
        found, error = ratio(mine, of)
        forms[name] = {"peer": round(perplexity[name], 4), "ratio": found, "error": error}
    found, error = ratio(theirs["on"], theirs["off"])
    forms["on_to_off"] = {"ratio": found, "error": error}
    spread = [ours, ours, best, max(perplexity.values())]
    return {
        "figure": "perplexity-512", "model": model,
        "ours": round(ours, 4), "peer": round(best, 4), "ratio": round(ours / best, 5),
        "runs": 1, "spread": [round(value, 4) for value in spread],
        "chunks": len(mine), "tokens": len(mine) * PREDICTED, "forms": forms,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ours", required=True, help="our program, benches/perplexity.rs")
    parser.add_argument("--peer", required=True, help="folder of llama.cpp's programs")
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--threads", default="2")
    parser.add_argument("--chunks", default="100000")
    options = parser.parse_args()
    of = [options.model, options.threads, options.text, options.chunks]
    mine = json.loads(run([options.ours, *of]))["surprise"]
    theirs = {}
    for flash in ("on", "off"):
        command = [str(Path(options.peer) / "llama-perplexity"), "-m", options.model,
                   "-f", options.text, "-c", "512", "-t", options.threads, "-fa", flash,
                   "--chunks", options.chunks]
        theirs[flash] = surprises(run(command))
        if len(theirs[flash]) != len(mine):
            raise SystemExit(f"{len(mine)} chunks of ours, {len(theirs[flash])} of the peer's: "
                             "they do not read the text alike")
    print(json.dumps(figure(mine, theirs, Path(options.model).name)))


if __name__ == "__main__":
    sys.exit(main())
