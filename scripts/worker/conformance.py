"""The worker protocol held against a worker from outside, HTTP only.

    python3 scripts/worker/conformance.py URL [--slots N] [--queue N] [--context N] [--times]

A token is read from TALLY_WORKER_TOKEN. Every row of docs/spec/worker-protocol.md at its bounds and
one beyond, but for those that HTTP cannot bring about: a stopping worker, an engine that fails.
With --context, the model's context in tokens, prompts beyond it must be refused; with --times,
/health and /cancel must be as fast as the page says. Standard library and curl, because the seed's
requests are curl's. A line for each check on standard error; the last line on standard output is
{"ok", "passed", "failed"}. Exit status 1 when a check failed.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time

from wire import JSON, Worker

NUMBERS = itertools.count(1)
CHECKS = []
STORY = "Once upon a time"
# Looks, 50 ms apart, until slots of clients that left must be free: far beyond any step.
PATIENCE = 600


def check(function):
    CHECKS.append(function)
    return function


def job(**fields):
    own = {"job_id": f"conformance-{os.getpid()}-{next(NUMBERS)}", "prompt": STORY, "max_tokens": 4}
    own.update(fields)
    return {name: value for name, value in own.items() if value is not ...}


def text_of(frames):
    return "".join(frame["t"] for frame in frames if frame["type"] == "token")


def hold_grammar(frames):
    """started, tokens numbered from 0, one terminal and nothing behind it."""
    kinds = [frame["type"] for frame in frames]
    assert kinds[0] == "started", kinds
    assert kinds[-1] in ("end", "error"), kinds
    assert set(kinds[1:-1]) <= {"token"}, kinds
    indices = [frame["i"] for frame in frames[1:-1]]
    assert indices == list(range(len(indices))), indices
    if kinds[-1] == "end":
        assert frames[-1]["tokens_out"] == len(indices), frames[-1]


def refused(worker, fields, status):
    found, body = worker.post("/execute", fields)
    assert found == status, f"wanted {status}, found {found}: {body}"
    return body


def hold_errors(worker, fields, expected):
    """The broken rules: (field, constraint, message, value or None), all and in order."""
    errors = refused(worker, fields, 400)["errors"]
    wanted = []
    for field, constraint, message, value in expected:
        error = {"field": field, "constraint": constraint, "message": message}
        wanted.append(error if value is None else {**error, "value": value})
    plain = [{**error, "message": error["message"] if wish["message"] else None}
             for error, wish in zip(errors, wanted)]
    assert plain == wanted and len(errors) == len(wanted), f"wanted {wanted}, found {errors}"


# The seed's own requests, as they stand there.

SEED_HEALTH = "curl http://localhost:8080/health"
SEED_EXECUTE = r"""curl -X POST http://localhost:8080/execute \
  -H "Content-Type: application/json" \
  -d '{
    "job_id": "test-123",
    "prompt": "Hello",
    "max_tokens": 10,
    "temperature": 0.7
  }'"""


def seed_curl(worker, command):
    command = command.replace("http://localhost:8080", worker.url)
    extra = "".join(f' -H "{name}: {value}"' for name, value in worker.headers.items())
    command = command.replace("curl ", f"curl -sSN{extra} ", 1)
    return subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True).stdout


@check
def the_seeds_health_request(worker, _):
    found = json.loads(seed_curl(worker, SEED_HEALTH))
    expected = {"status": "healthy", "model_loaded": True, "vram_bytes": 0, "memory_type": "cpu"}
    assert {name: found.get(name) for name in expected} == expected, found


@check
def the_seeds_execute_request(worker, _):
    raw = seed_curl(worker, SEED_EXECUTE)
    number, word = r"\d+", r'"(?:[^"\\]|\\.)*"'
    token = rf'event: token\ndata: \{{"type":"token","t":{word},"i":{number}\}}\n\n'
    started = (
        rf'event: started\ndata: \{{"type":"started","job_id":"test-123","model":{word},'
        rf'"started_at":{word}\}}\n\n'
    )
    end = (
        rf'event: end\ndata: \{{"type":"end","tokens_out":{number},"decode_time_ms":{number},'
        rf'"stop_reason":"(?:MAX_TOKENS|EOS)","stop_sequence_matched":null\}}\n\n'
    )
    assert re.fullmatch(f"{started}(?:{token}){{0,10}}{end}", raw), raw


# Bounds.

@check
def each_bound_is_inclusive(worker, _):
    for fields in (
        {"max_tokens": 1},
        {"temperature": 0},
        {"temperature": 2},
        {"top_p": 0},
        {"top_p": 1},
        {"repetition_penalty": 0},
        {"repetition_penalty": 2},
        {"min_p": 0},
        {"min_p": 1},
        {"top_k": 0},
        {"top_k": 2**32 - 1},
        {"seed": 0},
        {"seed": 2**64 - 1},
        {"stop": []},
        {"stop": ["\u00e9" * 100, "b", "c", "d"]},
        {"prompt": "x"},
        {"unknown": {"fields": "are ignored"}},
    ):
        hold_grammar(worker.run(job(**{"max_tokens": 1, **fields})))


@check
def the_longest_answer_may_be_asked_for(worker, _):
    with worker.stream(job(max_tokens=2048)) as stream:
        assert stream.next()["type"] == "started"


@check
def the_longest_prompt_passes_the_rules_of_fields(worker, figures):
    """It may be longer than the model's context, and is told so then; never cut."""
    for prompt in ("\u00e9" * 32768, "a " * 16384):
        hold_context(worker, figures, prompt)


def hold_context(worker, figures, prompt):
    """Such a prompt has a token for at least four characters, and no text is behind it."""
    fields = json.dumps(job(prompt=prompt, max_tokens=1))
    status, _, body = worker.call("POST", "/execute", fields)
    if status == 200:
        context = figures.get("context")
        assert context is None or len(prompt) // 4 < context, "a prompt beyond the context is taken"
        return
    (error,) = json.loads(body)["errors"]
    found = (status, error["field"], error["constraint"])
    assert found == (400, "prompt", "context_length"), found


@check
def one_beyond_each_bound_is_refused_by_its_rule(worker, _):
    two, one = "range(0.0..=2.0)", "range(0.0..=1.0)"
    most = {"temperature": two, "top_p": one, "repetition_penalty": two, "min_p": one}
    for field, constraint in most.items():
        top = 2 if constraint == two else 1
        over = f"{field} must be at most {top}.0 (got {top}.1)"
        hold_errors(worker, job(**{field: top + 0.1}), [(field, constraint, over, f"{top}.1")])
        under = f"{field} must be at least 0.0 (got -0.1)"
        hold_errors(worker, job(**{field: -0.1}), [(field, constraint, under, "-0.1")])
    tokens = "range(1..=2048)"
    hold_errors(worker, job(max_tokens=0),
                [("max_tokens", tokens, "max_tokens must be at least 1", "0")])
    hold_errors(worker, job(max_tokens=2049),
                [("max_tokens", tokens, "max_tokens must be at most 2048 (got 2049)", "2049")])
    hold_errors(worker, job(prompt=""), [("prompt", "non_empty", None, None)])
    hold_errors(worker, job(prompt="\u00e9" * 32769),
                [("prompt", "length(1..=32768)",
                  "prompt must be at most 32768 characters (got 32769)", None)])
    hold_errors(worker, job(stop=["a", ""]), [("stop", "non_empty", None, None)])
    hold_errors(worker, job(stop=["\u00e9" * 101]), [("stop", "max_length(100)", None, None)])
    (error,) = refused(worker, job(stop=list("abcde")), 400)["errors"]
    assert (error["field"], error["constraint"]) == ("stop", "max_count(4)"), error
    (error,) = refused(worker, job(job_id=""), 400)["errors"]
    assert (error["field"], error["constraint"]) == ("job_id", "non_empty"), error


@check
def all_broken_rules_come_at_once_in_order(worker, _):
    body = refused(worker, {
        "min_p": 2, "stop": list("abcde"), "repetition_penalty": 3, "top_p": 2, "temperature": 3,
        "max_tokens": 0, "prompt": "", "job_id": "",
    }, 400)
    found = [error["field"] for error in body["errors"]]
    assert found == ["job_id", "prompt", "max_tokens", "temperature", "top_p",
                     "repetition_penalty", "stop", "min_p"], found
    for error in body["errors"]:
        assert isinstance(error.get("value", ""), str), error
        assert error["field"] != "prompt" or "value" not in error, error


@check
def missing_and_mistyped_fields_are_422(worker, _):
    for fields in (
        job(job_id=...), job(prompt=...), job(max_tokens=...), job(job_id=7), job(prompt=["a"]),
        job(max_tokens="4"), job(max_tokens=1.5), job(max_tokens=-1), job(max_tokens=2**32),
        job(temperature="hot"), job(seed=-1), job(seed=2**64), job(top_k=-1), job(top_k=2**32),
        job(stop="a"), job(stop=[1]), job(min_p=None), [1], "a",
    ):
        assert isinstance(refused(worker, fields, 422), dict)


@check
def every_other_refusal_is_json_with_its_status(worker, _):
    good = json.dumps(job())
    for method, path, body, headers, status in (
        ("POST", "/execute", "{\"job_id\":", JSON, 400),
        ("POST", "/execute", "", JSON, 400),
        ("POST", "/execute", b"{\"job_id\": \"\xff\"}", JSON, 400),
        ("POST", "/execute", good.encode()[:-1] + b", \"x\": \"\xff\"}", JSON, 400),
        ("POST", "/execute", good[:-1] + ", \"seed\": 1e400}", JSON, 422),
        ("POST", "/execute", good, {"Content-Type": "text/plain"}, 415),
        ("POST", "/execute", good, {}, 415),
        ("POST", "/execute", "x" * (2 * 1024 * 1024 + 1), JSON, 413),
        ("GET", "/execute", None, {}, 405),
        ("PUT", "/cancel", good, JSON, 405),
        ("POST", "/health", good, JSON, 405),
        ("GET", "/nowhere", None, {}, 404),
        ("POST", "/cancel", "{}", JSON, 422),
    ):
        try:
            found, named, answer = worker.call(method, path, body, headers)
        except (BrokenPipeError, ConnectionResetError):
            # A worker need not take a body to its end that it refuses by its length.
            assert status == 413
            continue
        case = f"{method} {path}: wanted {status}, found {found}"
        assert found == status, case
        assert named["content-type"].startswith("application/json"), case
        json.loads(answer)


@check
def a_body_of_two_mebibytes_is_read(worker, _):
    fields = json.dumps(job(max_tokens=1))
    body = fields[:-1] + " " * (2 * 1024 * 1024 - len(fields)) + "}"
    assert worker.call("POST", "/execute", body)[0] == 200


@check
def without_its_token_a_worker_takes_no_jobs(worker, _):
    """A worker that has no token lets everybody in, so there is nothing to hold."""
    if not worker.headers:
        return
    for headers in ({}, {"Authorization": "Bearer another"}):
        stranger = Worker(worker.url)
        stranger.headers = headers
        for path in ("/execute", "/cancel"):
            status, body = stranger.post(path, job())
            assert (status, body["error"]["code"]) == (401, "UNAUTHORIZED"), (status, body)
        assert stranger.call("GET", "/health")[0] == 200, "health is open"


@check
def a_prompt_beyond_the_context_is_told_and_never_cut(worker, figures):
    """Where the model's context is longer than any allowed prompt, there is nothing to tell."""
    hold_context(worker, figures, "\u20dd\u0489" * 16384)


# Streams.

@check
def a_stream_follows_the_grammar(worker, _):
    frames = worker.run(job(max_tokens=16))
    hold_grammar(frames)
    started = frames[0]
    assert set(started) == {"type", "job_id", "model", "started_at"}, started
    assert isinstance(started["started_at"], str) and started["started_at"], started
    end = frames[-1]
    assert set(end) == {"type", "tokens_out", "decode_time_ms", "stop_reason",
                        "stop_sequence_matched"}, end
    assert end["stop_reason"] in ("MAX_TOKENS", "EOS"), end
    assert end["stop_sequence_matched"] is None


@check
def greedy_runs_repeat_themselves(worker, _):
    def greedy(prompt):
        return text_of(worker.run(job(prompt=prompt, temperature=0, max_tokens=24)))

    first, other, again = greedy(STORY), greedy("The capital of France is"), greedy(STORY)
    assert first == again and first != other, (first, other, again)
    tiny = text_of(worker.run(job(temperature=9e-7, seed=9, max_tokens=24)))
    assert tiny == first, "below 1e-6 is greedy"


@check
def the_same_seed_gives_the_same_text(worker, _):
    def drawn(**fields):
        return text_of(worker.run(job(max_tokens=24, **fields)))

    assert drawn(seed=7) == drawn(seed=7)
    assert drawn() == drawn(seed=42), "42 is the default"


@check
def text_is_whole_characters(worker, _):
    prompt = "Emoji: \U0001f600 \U0001f469\u200d\U0001f469\u200d\U0001f467 \u6f22\u5b57 \u00e9"
    for seed in range(4):
        frames = worker.run(job(prompt=prompt, max_tokens=48, temperature=2, seed=seed))
        hold_grammar(frames)


@check
def a_stop_string_over_several_tokens_ends_the_text(worker, _):
    whole = text_of(worker.run(job(temperature=0, max_tokens=24)))
    gaps = [at for at, symbol in enumerate(whole) if symbol == " "]
    stop = whole[gaps[2] - 1:gaps[4] + 2]
    frames = worker.run(job(temperature=0, max_tokens=24, stop=["never said", stop]))
    hold_grammar(frames)
    assert text_of(frames) == whole[:whole.index(stop)], (whole, stop, text_of(frames))
    found = (frames[-1]["stop_reason"], frames[-1]["stop_sequence_matched"])
    assert found == ("STOP_SEQUENCE", stop), found


class Asking(threading.Thread):
    """Asks for /health until it is told to stop; it never keeps the process alive."""

    def __init__(self, worker):
        super().__init__(daemon=True)
        self.worker, self.spans, self.error = worker, [], None
        self.ended = threading.Event()

    def run(self):
        try:
            while not self.ended.is_set():
                began = time.monotonic()
                status, _, _ = self.worker.call("GET", "/health")
                assert status == 200, status
                self.spans.append((began, time.monotonic()))
        except Exception as error:  # Told by `stop`, on the check's own thread.
            self.error = error

    def stop(self):
        self.ended.set()
        self.join()
        if self.error:
            raise self.error


@check
def frames_leave_as_tokens_are_made_and_health_answers_meanwhile(worker, figures):
    """Between two frames of one job /health answers, and the first frame is early."""
    began = time.monotonic()
    asking = Asking(worker)
    with worker.stream(job(max_tokens=256, temperature=0)) as stream:
        frames = [stream.next(), stream.next()]
        asking.start()
        try:
            frames += list(stream)
            times = stream.times
        finally:
            asking.stop()
    hold_grammar(frames)
    tokens = times[1:-1]
    spans = asking.spans
    during = [later for earlier, later in spans if earlier > tokens[0] and later < tokens[-1]]
    assert during, "no health answer between the first and the last token"
    lasted = sorted(1000 * (later - earlier) for earlier, later in spans)
    figures["health_ms_p50"] = round(lasted[len(lasted) // 2], 2)
    figures["health_ms_p99"] = round(lasted[int(len(lasted) * 0.99)], 2)
    figures["health_answers"] = len(lasted)
    figures["first_token_at"] = round((tokens[0] - began) / (times[-1] - began), 3)
    assert figures["first_token_at"] < 0.5, "the first frame comes when half is computed already"
    if figures["times"]:
        assert figures["health_ms_p99"] < 10, figures


# Ends.

@check
def a_cancel_ends_the_stream_and_the_next_job_is_unaffected(worker, figures):
    plain = text_of(worker.run(job(temperature=0, max_tokens=8)))
    fields = job(max_tokens=2048)
    with worker.stream(fields) as stream:
        for _ in range(4):
            stream.next()
        asked = time.monotonic()
        status, _ = worker.post("/cancel", {"job_id": fields["job_id"]})
        assert status == 202, status
        frames = list(stream)
        figures["cancel_ms"] = round(1000 * (stream.times[-1] - asked), 1)
    if figures["times"]:
        assert figures["cancel_ms"] < 100, figures
    last = frames[-1]
    assert (last["type"], last.get("code")) == ("error", "CANCELLED"), last
    assert set(last) == {"type", "code", "message", "retriable"}, last
    for name in (fields["job_id"], "never seen"):
        assert worker.post("/cancel", {"job_id": name})[0] == 202, "cancels are idempotent"
    assert text_of(worker.run(job(temperature=0, max_tokens=8))) == plain


@check
def a_client_that_leaves_frees_its_slot(worker, _):
    for _ in range(8):
        with worker.stream(job(max_tokens=2048)) as stream:
            stream.next()
    frames = worker.run(job(max_tokens=4))
    hold_grammar(frames)


@check
def a_deadline_ends_a_job(worker, _):
    late = worker.run(job(), {"X-Request-Deadline": "1000000000000"})
    assert [frame.get("code") for frame in late] == ["TIMEOUT"], late
    soon = time.time() + 0.4
    deadline = {"X-Request-Deadline": str(int(1000 * soon))}
    frames = worker.run(job(max_tokens=2048, temperature=0), deadline)
    ended = time.time()
    # A job may be done before its deadline; no job goes on behind it, and none ends before it.
    if frames[-1]["type"] == "end":
        assert ended < soon, f"the job ended {ended - soon} s behind its deadline"
    else:
        assert frames[-1]["code"] == "TIMEOUT" and ended >= soon - 0.001, frames[-1]
    for bad in ("soon", "1790000000"):
        status, _, body = worker.call(
            "POST", "/execute", json.dumps(job()), {**JSON, "X-Request-Deadline": bad}
        )
        assert status == 400 and b"X-Request-Deadline" in body, (status, body)


@check
def beyond_slots_and_queue_jobs_are_refused(worker, figures):
    slots, queue = figures["slots"], figures["queue"]
    with contextlib.ExitStack() as stack:
        for _ in range(slots + queue):
            stack.enter_context(worker.stream(job(max_tokens=2048)))
        error = refused(worker, job(), 503)["error"]
        found = {name: error[name] for name in ("code", "slots_total", "slots_busy")}
        wanted = {"code": "ALL_SLOTS_BUSY", "slots_total": slots, "slots_busy": slots}
        assert found == wanted, found
    # Their slots come back.
    for _ in range(PATIENCE):
        if worker.call("POST", "/execute", json.dumps(job(max_tokens=1)))[0] != 503:
            return
        time.sleep(0.05)
    raise AssertionError("clients that left keep their slots")


@check
def a_running_job_id_is_a_conflict(worker, _):
    fields = job(max_tokens=2048)
    with worker.stream(fields) as stream:
        stream.next()
        refused(worker, fields, 409)


@check
def metrics_are_prometheus_text(worker, _):
    status, named, body = worker.call("GET", "/metrics")
    assert status == 200 and named["content-type"].startswith("text/plain"), (status, named)
    assert re.search(rb"^worker_slots \d+$", body, re.MULTILINE), body[:300]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="the worker, as http://HOST:PORT")
    parser.add_argument("--slots", type=int, default=1, help="its slots (default 1)")
    parser.add_argument("--queue", type=int, default=8, help="its queue (default 8)")
    parser.add_argument("--context", type=int, help="its model's context, tokens")
    parser.add_argument("--times", action="store_true", help="hold the page's times too")
    arguments = parser.parse_args()
    worker = Worker(arguments.url, os.environ.get("TALLY_WORKER_TOKEN"))
    figures = vars(arguments).copy()
    figures.pop("url")
    passed = failed = 0
    for function in CHECKS:
        name = function.__name__.replace("_", " ")
        try:
            function(worker, figures)
        except Exception as error:  # Whatever went wrong, the other checks still run.
            failed += 1
            print(f"FAIL {name}: {type(error).__name__}: {error}", file=sys.stderr)
        else:
            passed += 1
            print(f"ok   {name}", file=sys.stderr)
    print(f"figures: {json.dumps(figures)}", file=sys.stderr)
    print(json.dumps({"ok": failed == 0, "passed": passed, "failed": failed}))
    return 0 if failed == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
