#!/usr/bin/env python3
"""loadgen.py - small, bounded load generator for an OpenAI-compatible
streaming chat endpoint (POST {url}/v1/chat/completions, stream=true).

Standard library only; prints one JSON object. Everything is counted from the
stream as the client sees it:

  ttft   request sent -> first chunk that carries text
  itl    time between two successive text chunks of one stream
  tokens text chunks (1 chunk = 1 token on llama-server); if the server sends
         usage in the last chunk (stream_options.include_usage), that is used
         and `tokens_from` says so. Pass --tokens-from chunks to force chunks.
  tok_s  all generated tokens / wall time of the whole run

A request is sent by one of --concurrency workers, closed loop. --multi-turn N
makes each "request" a conversation of N turns, the answer being sent back, so
turn 2.. shows what a prompt/prefix cache is worth (`ttft_by_turn`).
--shared-prefix N puts the same N words in front of every conversation.

  python3 loadgen.py --url http://127.0.0.1:8080 --concurrency 8 \
      --requests 32 --max-tokens 64 --prompt-words 120

--pid PID also reports that process's RSS/peak RSS (Linux /proc).
Only loopback addresses are accepted unless --allow-remote is given.
"""

import argparse, http.client, json, os, random, sys, threading, time
from urllib.parse import urlsplit

WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this have "
    "from or had an they which one you were all her she there would their we him been has "
    "when who will no more if out so up said what its about than into them can only other "
    "time new some could these two may first then do any like my now over such our man me "
    "even most made after also did many off before must well back through years much where "
    "your way down should because long each just state those people too mister good make "
    "world still see own work men here get both life being under never day same another know "
    "while last might us great old year "
).split()


def pct(xs, p):
    if not xs:
        return None
    xs = sorted(xs)
    i = (len(xs) - 1) * p / 100.0
    lo = int(i)
    hi = min(lo + 1, len(xs) - 1)
    return xs[lo] + (xs[hi] - xs[lo]) * (i - lo)


def stats(xs):
    if not xs:
        return None
    ms = [x * 1000 for x in xs]
    return {
        "n": len(ms),
        "p50_ms": round(pct(ms, 50), 2),
        "p95_ms": round(pct(ms, 95), 2),
        "p99_ms": round(pct(ms, 99), 2),
        "mean_ms": round(sum(ms) / len(ms), 2),
    }


def rss(pid):
    out = {}
    try:
        with open(f"/proc/{pid}/status") as f:
            for line in f:
                if line.startswith(("VmRSS", "VmHWM")):
                    k, v = line.split(":")
                    out[k + "_mib"] = round(int(v.split()[0]) / 1024, 1)
    except OSError:
        pass
    return out


def chat(a, u, messages):
    """One streamed completion -> (ttft, [gaps], text, tokens, from, total)."""
    body = {
        "model": a.model,
        "messages": messages,
        "stream": True,
        "max_tokens": a.max_tokens,
        "temperature": a.temperature,
        "seed": a.seed,
        "stream_options": {"include_usage": True},
    }
    if a.extra:
        body.update(json.loads(a.extra))
    hdr = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    key = os.environ.get("LOADGEN_API_KEY")
    if key:
        hdr["Authorization"] = "Bearer " + key
    cls = http.client.HTTPSConnection if u.scheme == "https" else http.client.HTTPConnection
    c = cls(u.hostname, u.port, timeout=a.timeout)
    t0 = time.perf_counter()
    c.request("POST", u.path.rstrip("/") + "/v1/chat/completions", json.dumps(body), hdr)
    r = c.getresponse()
    if r.status != 200:
        raise RuntimeError(f"HTTP {r.status}: {r.read(300)!r}")
    ttft, last, gaps, parts, usage, timings = None, None, [], [], None, None
    for line in r:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            break
        now = time.perf_counter()
        d = json.loads(data)
        usage = d.get("usage") or usage
        timings = d.get("timings") or timings
        ch = d.get("choices") or []
        txt = (ch[0].get("delta") or {}).get("content") if ch else None
        if txt:
            if ttft is None:
                ttft = now - t0
            else:
                gaps.append(now - last)
            last = now
            parts.append(txt)
    c.close()
    n, src = len(parts), "chunks"
    if usage and a.tokens_from != "chunks":
        n, src = usage.get("completion_tokens", n), "usage"
    return ttft, gaps, "".join(parts), n, src, time.perf_counter() - t0, usage


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--url",
        default=os.environ.get("LOADGEN_URL", "http://127.0.0.1:8080"),
        help="base URL, without /v1",
    )
    p.add_argument("--model", default="default")
    p.add_argument("--concurrency", type=int, default=1)
    p.add_argument(
        "--requests", type=int, default=8, help="requests (conversations with --multi-turn) in all"
    )
    p.add_argument("--max-tokens", type=int, default=64)
    p.add_argument(
        "--prompt-words",
        type=int,
        default=100,
        help="random words per user message (about 1 token each)",
    )
    p.add_argument(
        "--shared-prefix",
        type=int,
        default=0,
        help="words common to all conversations (system message)",
    )
    p.add_argument("--multi-turn", type=int, default=1, metavar="TURNS")
    p.add_argument("--warmup", type=int, default=1)
    p.add_argument("--temperature", type=float, default=0.0)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--timeout", type=float, default=120)
    p.add_argument(
        "--max-seconds", type=float, default=300, help="start no new request after this long"
    )
    p.add_argument("--tokens-from", choices=["auto", "chunks"], default="auto")
    p.add_argument("--extra", help="JSON merged into each request, e.g. '{\"ignore_eos\":true}'")
    p.add_argument("--pid", type=int, help="report this process's memory")
    p.add_argument("--label", default="")
    p.add_argument("--allow-remote", action="store_true")
    a = p.parse_args()
    u = urlsplit(a.url)
    if not a.allow_remote and u.hostname not in ("127.0.0.1", "localhost", "::1"):
        sys.exit("only loopback unless --allow-remote")

    lock, todo = threading.Lock(), list(range(a.requests))
    ttft = [[] for _ in range(a.multi_turn)]
    gaps, e2e, errors, tot, src = [], [], [], [0, 0], set()
    shared = " ".join(random.Random(7).choice(WORDS) for _ in range(a.shared_prefix))

    def conversation(i, record=True):
        rnd = random.Random(a.seed * 1000003 + i)
        msgs = [{"role": "system", "content": shared}] if shared else []
        for turn in range(a.multi_turn):
            msgs.append(
                {
                    "role": "user",
                    "content": " ".join(rnd.choice(WORDS) for _ in range(a.prompt_words))
                    + ". Tell a long story about it.",
                }
            )
            f, g, text, n, s, total, usage = chat(a, u, msgs)
            msgs.append({"role": "assistant", "content": text})
            if not record:
                continue
            with lock:
                if f is not None:
                    ttft[turn].append(f)
                gaps.extend(g)
                e2e.append(total)
                tot[0] += n
                tot[1] += (usage or {}).get("prompt_tokens", 0)
                src.add(s)

    def worker():
        while time.perf_counter() - start < a.max_seconds:
            with lock:
                if not todo:
                    return
                i = todo.pop(0)
            try:
                conversation(i)
            except Exception as e:  # counted, never hidden
                with lock:
                    errors.append(repr(e)[:300])

    start = time.perf_counter()
    for w in range(a.warmup):
        conversation(10**6 + w, record=False)
    start = time.perf_counter()
    ts = [threading.Thread(target=worker) for _ in range(a.concurrency)]
    [t.start() for t in ts]
    [t.join() for t in ts]
    wall = time.perf_counter() - start
    out = {
        "label": a.label,
        "concurrency": a.concurrency,
        "requests": a.requests,
        "max_tokens": a.max_tokens,
        "turns": a.multi_turn,
        "wall_s": round(wall, 3),
        "tokens": tot[0],
        "tokens_from": "/".join(sorted(src)),
        "prompt_tokens": tot[1],
        "tok_s": round(tot[0] / wall, 2),
        "ttft": stats([x for t in ttft for x in t]),
        "itl": stats(gaps),
        "e2e": stats(e2e),
        "errors": len(errors),
    }
    if a.multi_turn > 1:
        out["ttft_by_turn"] = [stats(t) for t in ttft]
    if errors:
        out["first_error"] = errors[0]
    if a.pid:
        out["memory"] = rss(a.pid)
    print(json.dumps(out))
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
