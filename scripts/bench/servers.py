"""Our node and llama-server in turn, under the same load, round by round.

Run by scripts/bench/server.sh. Both get the same file, threads, places (one to a client) and room
for the same number of tokens in their KV caches; both answer loadgen.py, which tells them to go on
to the last token. The peer runs with and without flash attention, and without its cache of prompts
in main memory, which would only cost it memory under this load; figure by figure its better form
counts. One JSON line to a figure:

  figure, model       what was measured, see FIGURES
  ours, peer          medians; ratio = ours / peer, so less than 1 is good but for tok_s
  runs                of each
  spread              lowest and highest of ours, then of the peer
  peer_flash          whether the peer's better form was the one with flash attention
  kv_tokens           room in each KV cache
"""

import argparse
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from statistics import mean

from figures import best, line, run

HERE = Path(__file__).resolve().parent
BLOCK_TOKENS = 16  # crates/engine/src/kv/pool.rs
READY_SECONDS_MAX = 120
# The node's name for the model; llama-server takes any.
MODEL = "bench"

# Name and whether more is better.
FIGURES = {
    "server-tok_s": True,  # tokens a second, all clients together
    "server-ttft_p50_ms": False,  # request sent to first text
    "server-itl_p95_ms": False,  # from text to text of one stream
    "later-turn-ttft_ms": False,  # one client; mean of the second and later turns' medians
    "rss_peak_mib": False,  # after the clients' load
    "ready_s": False,  # from start to the first 200 of /health
}


class Gone(Exception):
    """The server ended by itself."""


def ours(options, port, kv_bytes, home):
    """The command of our node."""
    return [options.ours, "serve", "--free", "--listen", f"127.0.0.1:{port}",
            "--data-dir", str(home), "--model-path", options.model, "--model-name", MODEL,
            "--engine-threads", str(options.threads), "--engine-running-max",
            str(options.clients), "--engine-kv-memory-bytes", str(kv_bytes),
            "--log-filter", "warn"]


def peer(options, port, flash):
    """The command of llama-server."""
    program = str(Path(options.peer) / "llama-server")
    return [program, "-m", options.model, "-t", str(options.threads), "-np", str(options.clients),
            "-c", str(kv_tokens(options)), "-fa", "on" if flash else "off", "--cache-ram", "0",
            "--host", "127.0.0.1", "--port", str(port)]


def kv_tokens(options):
    """Room that both KV caches have."""
    return options.clients * options.context


def kv_bytes(options, home):
    """The node's setting that gives it this room, found by asking a node what a block takes."""
    probe = 256 << 20
    with server(lambda port: ours(options, port, probe, home)) as (_, url, _):
        blocks = gauge(url, "kv_block_count_free")
    # Rounded up: the node makes whole blocks only.
    return -(-kv_tokens(options) // BLOCK_TOKENS) * -(-probe // int(blocks))


def gauge(url, name):
    """A gauge of the node, once it is there: it is written every second."""
    for _ in range(100):
        for row in fetch(f"{url}/metrics").splitlines():
            if row.startswith(f"{name} ") and float(row.split()[1]) > 0:
                return float(row.split()[1])
        time.sleep(0.1)
    raise SystemExit(f"the node does not tell {name}")


def fetch(url):
    """A page, or an empty one while the server does not answer."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return ""


@contextmanager
def server(command):
    """A running server: its process, its address and the seconds until it was ready."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        begun = time.monotonic()
        process = subprocess.Popen(command(port), stdout=log, stderr=log)
        try:
            wait_ready(process, f"{url}/health")
            yield process, url, time.monotonic() - begun
        except Gone:
            log.seek(0)
            said = log.read()[-2000:].decode(errors="replace")
            raise SystemExit(f"{command(port)[0]} did not come up:\n{said}") from None
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port():
    """A TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_ready(process, health):
    """Until the server answers 200."""
    end = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < end:
        if process.poll() is not None:
            raise Gone
        try:
            with urllib.request.urlopen(health, timeout=1) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        time.sleep(0.002)
    raise Gone


def load(options, url, pid, *more):
    """What the load generator saw. It fails where a request does, which ends the benchmark."""
    command = [sys.executable, str(HERE / "loadgen.py"), "--url", url, "--model", MODEL,
               "--prompt-words", str(options.words), "--extra", '{"ignore_eos":true}',
               "--pid", str(pid), *more]
    return json.loads(run(command))


def sample(options, command, seed):
    """One run of one server: a value to each figure."""
    with server(command) as (process, url, ready):
        crowd = load(options, url, process.pid, "--concurrency", str(options.clients),
                     "--requests", str(options.requests), "--max-tokens", str(options.tokens),
                     "--seed", str(seed))
        wanted = options.requests * options.tokens
        if crowd["tokens"] != wanted:
            raise SystemExit(f"{wanted} tokens were asked for, {crowd['tokens']} came")
        talk = load(options, url, process.pid, "--concurrency", "1", "--requests", "3",
                    "--multi-turn", str(options.turns), "--max-tokens", "32",
                    "--seed", str(seed + 1))
    return {
        "server-tok_s": crowd["tok_s"],
        "server-ttft_p50_ms": crowd["ttft"]["p50_ms"],
        "server-itl_p95_ms": crowd["itl"]["p95_ms"],
        "later-turn-ttft_ms": mean(turn["p50_ms"] for turn in talk["ttft_by_turn"][1:]),
        "rss_peak_mib": crowd["memory"]["VmHWM_mib"],
        "ready_s": ready,
    }


def measure(options):
    """All figures, as JSON objects."""
    mine, theirs = [], {False: [], True: []}
    with tempfile.TemporaryDirectory(prefix="tally-bench-") as home:
        room = kv_bytes(options, home)
        for at in range(options.runs):
            # Servers keep prompts: no run repeats another's.
            seed = 1000 * (at + 1)
            mine.append(sample(options, lambda port: ours(options, port, room, home), seed))
            for flash, samples in theirs.items():
                form = lambda port, flash=flash: peer(options, port, flash)
                samples.append(sample(options, form, seed))
    for figure, more_is_better in FIGURES.items():
        column = lambda samples, figure=figure: [sample[figure] for sample in samples]
        forms = {flash: column(samples) for flash, samples in theirs.items()}
        flash, values = best(forms, more_is_better)
        yield line(figure, column(mine), values, model=Path(options.model).name,
                   peer_flash=flash, kv_tokens=kv_tokens(options))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, help="the tally program")
    parser.add_argument("--peer", required=True, help="folder of llama.cpp's programs")
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=32, help="in all, to a run")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--words", type=int, default=100, help="of each prompt")
    parser.add_argument("--turns", type=int, default=4, help="of each conversation")
    parser.add_argument("--context", type=int, default=2048, help="tokens of room to a client")
    options = parser.parse_args()
    # As an exception, so that no server is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for figure in measure(options):
        print(json.dumps(figure), flush=True)


if __name__ == "__main__":
    sys.exit(main())
