#!/usr/bin/env python3
"""Do the clients' tokens, the node's ledger and the chain agree? A black box test.

    test_token_tracking.py --url http://127.0.0.1:8080 --rpc http://127.0.0.1:8545 \\
        --marketplace 0x… --jobs 1,2,3

Sessions come from --jobs, from a command that prints {"job_id":N} (--sessions-command, run
--sessions times), or are opened from an account that the chain itself holds the key of
(--depositor and --host, as on a development chain).

Four scenes: REST and WebSocket alternating on one session under every form of its id; a cancelled
stream; dropped connections that come back; --clients clients at once over all sessions. Then for
each session:

    tokens seen <= recorded <= seen + 8 for each drop     (equal where nothing was dropped)
    recorded only grows, and between prompts by what was seen
    chain's tokensUsed = sum of its ProofSubmitted events = recorded - tail, tail < 100
    each claim >= 100, its transaction succeeded, and the node reports it with the same amount

Prints a table and one JSON line. Exit 0: all agree. 1: a difference, named. 2: wrong usage.
Needs Python 3.10 and the package `websockets`. `--self-test` checks this script itself against a
small node that miscounts on purpose (tests/shell/fake_node.py).
"""

import argparse
import concurrent.futures
import contextlib
import http.client
import itertools
import json
import shlex
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
from dataclasses import dataclass, field

CLAIM_MIN = 100  # MIN_PROVEN_TOKENS of the contract
UNRECORDED_MAX = 8  # tokens of a job that may be written and not yet recorded
POLL_SECONDS = 0.2
STABLE_POLLS = 8  # as many equal answers in a row mean that nothing more is being recorded
MISSING_POLLS = 25  # as many, and what was seen and is not recorded will never be
PROMPTS = [
    "Name three rivers and say one sentence about each.",
    "Write a short story about a lighthouse keeper.",
    "Explain why the sky is blue, in simple words.",
    "List the months of the year and what happens in each.",
]
SELECTOR_SESSION_JOBS = "ef39d372"
SELECTOR_CREATE_SESSION_JOB = "366e2177"
TOPIC_SESSION_CREATED = "0x513b4fec3e6ae39000befae860b986c341242d8f5137c9ffafc229557420c42f"
# First bytes of ProofSubmitted's topic, by contract version: v3, v4/v5, v6/v7.
TOPICS_PROOF = ("0xb4c5c925", "0x0b81f467", "0x330d363d")
# Which word of sessionJobs' answer is tokensUsed, by contract version.
TOKENS_USED_WORD = {"v3a": 6, "v3": 7, "v4": 7, "v5": 6, "v6": 6, "v7": 6}


class Difference(Exception):
    """Two counts that must agree do not, or the node broke its protocol."""


class Busy(Exception):
    """The node refused for now, before any token was made."""


@dataclass
class Account:
    """What the clients know of one job; shared by their threads."""

    job: int
    seen: int = 0
    slack: int = 0  # tokens that drops may have recorded beyond what was seen
    requests: int = 0
    recorded: int = 0  # as last reported; it may only grow
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, tokens, slack=0):
        """One more request that showed `tokens` to its client."""
        with self.lock:
            self.seen += tokens
            self.slack += slack
            self.requests += 1


class Deadline:
    """The one time limit of the whole run."""

    def __init__(self, seconds):
        self.end = time.monotonic() + seconds

    def left(self):
        """Seconds left, never below a moment, so that a socket's timeout is valid."""
        return max(self.end - time.monotonic(), 0.05)

    def poll(self, what):
        """Yields until the caller is content; past the deadline it is a difference."""
        while True:
            yield
            if time.monotonic() > self.end:
                raise Difference(f"out of time while waiting for {what()}")
            time.sleep(POLL_SECONDS)


def post_json(url, body, timeout):
    """POST of a JSON body to a whole URL; the decoded answer."""
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    link = kind(parts.hostname, parts.port, timeout=timeout)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        link.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return json.loads(link.getresponse().read())
    finally:
        link.close()


class Chain:
    """The chain, by raw JSON-RPC."""

    def __init__(self, options, deadline):
        self.rpc, self.deadline = options.rpc, deadline
        self.marketplace = options.marketplace
        self.word = TOKENS_USED_WORD[options.contract_version]
        self.numbers = itertools.count(1)
        self.chain_id = int(self.call("eth_chainId"), 16)

    def call(self, method, *params):
        """One call; an error of the chain is a difference with its words."""
        body = {"jsonrpc": "2.0", "id": next(self.numbers), "method": method, "params": params}
        answer = post_json(self.rpc, body, self.deadline.left())
        if "error" in answer:
            raise Difference(f"{method}: the chain answers {answer['error']}")
        return answer["result"]

    def tokens_used(self, job):
        """tokensUsed of `sessionJobs(job)`."""
        data = f"0x{SELECTOR_SESSION_JOBS}{job:064x}"
        words = self.call("eth_call", {"to": self.marketplace, "data": data}, "latest")[2:]
        word = words[64 * self.word : 64 * (self.word + 1)]
        if len(word) != 64:
            raise Difference(f"sessionJobs({job}) has {len(words) // 64} words, wanted more")
        return int(word, 16)

    def claims(self, job):
        """[(tokens, transaction hash)] of the job's ProofSubmitted events, oldest first."""
        where = {"address": self.marketplace, "fromBlock": "0x0", "toBlock": "latest"}
        logs = self.call("eth_getLogs", {**where, "topics": [None, f"0x{job:064x}"]})
        proofs = [log for log in logs if log["topics"][0].startswith(TOPICS_PROOF)]
        return [(int(log["data"][2:66], 16), log["transactionHash"]) for log in proofs]

    def receipt(self, transaction):
        """The receipt, waited for."""
        for _ in self.deadline.poll(lambda: f"the receipt of {transaction}"):
            receipt = self.call("eth_getTransactionReceipt", transaction)
            if receipt is not None:
                return receipt

    def open_session(self, options):
        """Opens a native session from an account that the chain can sign for; its job id."""
        words = (int(options.host, 16), options.price, options.max_duration, CLAIM_MIN)
        data = "0x" + SELECTOR_CREATE_SESSION_JOB + "".join(f"{word:064x}" for word in words)
        transaction = {"from": options.depositor, "to": self.marketplace, "data": data,
                       "value": hex(options.deposit)}
        receipt = self.receipt(self.call("eth_sendTransaction", transaction))
        for log in receipt["logs"]:
            if log["topics"][0] == TOPIC_SESSION_CREATED:
                return int(log["topics"][1], 16)
        raise Difference(f"{receipt['transactionHash']}: no SessionJobCreated event")


def counted(body, where):
    """Tokens of a finished answer, its own figures compared with each other."""
    used, usage = body.get("tokens_used"), body.get("usage") or {}
    completion = usage.get("completion_tokens", used)
    if used is None:
        used = completion
    if used is None or used != completion:
        raise Difference(f"{where}: tokens_used {used}, usage.completion_tokens {completion}")
    total = usage.get("total_tokens")
    if total is not None and total != usage.get("prompt_tokens", 0) + completion:
        raise Difference(f"{where}: total_tokens {total} is not the sum of its parts: {usage}")
    return used


class Rest:
    """A client that speaks HTTP."""

    def __init__(self, options, deadline):
        self.options, self.deadline = options, deadline
        self.parts = urllib.parse.urlsplit(options.url)

    def request(self, method, path, body=None):
        """Sends one request; the connection and its open answer."""
        parts = self.parts
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        link = kind(parts.hostname, parts.port, timeout=self.deadline.left())
        headers = {"Content-Type": "application/json"}
        if self.options.bearer:
            headers["Authorization"] = f"Bearer {self.options.bearer}"
        payload = None if body is None else json.dumps(body)
        link.request(method, parts.path.rstrip("/") + path, payload, headers)
        return link, link.getresponse()

    def json(self, method, path, body=None):
        """A whole exchange; the decoded answer of a 200."""
        link, answer = self.request(method, path, body)
        try:
            text = answer.read()
            self.check_status(answer.status, text, f"{method} {path}")
            return json.loads(text)
        finally:
            link.close()

    @staticmethod
    def check_status(status, text, where):
        """A refusal for now is `Busy`, any other failure a difference."""
        if status in (429, 503):
            raise Busy(f"{where}: {status} {text!r}")
        if status != 200:
            raise Difference(f"{where}: status {status}: {text[:300]!r}")

    def body(self, session_id, prompt, stream):
        """An inference request as web clients send it."""
        return {"model": self.options.model, "prompt": prompt, "stream": stream,
                "max_tokens": self.options.max_tokens, "temperature": 0.7,
                "session_id": session_id, "chain_id": self.options.chain_id}

    def whole(self, account, session_id, prompt):
        """One prompt, answered in one body."""
        body = self.json("POST", "/v1/inference", self.body(session_id, prompt, False))
        account.add(counted(body, f"job {account.job}, REST"))

    def streamed(self, account, session_id, prompt, drop_after=None):
        """One prompt over server-sent events; with `drop_after`, left after so many tokens."""
        where = f"job {account.job}, SSE"
        link, answer = self.request("POST", "/v1/inference", self.body(session_id, prompt, True))
        try:
            if answer.status != 200:
                self.check_status(answer.status, answer.read(), where)
            seen, last, done = self.frames(answer, where, drop_after)
        finally:
            answer.close()  # it holds the socket; the connection's close alone drops nothing
            link.close()
        if done:
            if last is None or counted(last, where) != seen:
                raise Difference(f"{where}: frames carried {seen} tokens, the end says {last}")
            account.add(seen)
        else:
            account.add(seen, UNRECORDED_MAX)

    @staticmethod
    def frames(answer, where, drop_after):
        """(tokens by the running usage, final frame, whether it came to its end)."""
        seen, last = 0, None
        for line in answer:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return seen, last, True
            last = json.loads(data)
            if last.get("error_type"):
                raise Difference(f"{where}: {last}")
            running = running_tokens(last)
            if running is not None:
                if running < seen:
                    raise Difference(f"{where}: the running usage fell from {seen} to {running}")
                seen = running
            if drop_after is not None and seen >= drop_after and not last.get("finish_reason"):
                return seen, last, False
        raise Difference(f"{where}: the stream ended without [DONE]")


def running_tokens(frame):
    """Tokens so far as one SSE frame tells them, or None."""
    usage = frame.get("usage") or {}
    return usage.get("completion_tokens", frame.get("tokens_used"))


class WebSocket:
    """A client that speaks the marketplace's WebSocket protocol."""

    numbers = itertools.count(1)

    def __init__(self, options, deadline):
        from websockets.sync.client import connect

        self.options, self.deadline = options, deadline
        self.refused = set()  # ids of refused prompts: their stream_end may still come
        headers = {"Authorization": f"Bearer {options.bearer}"} if options.bearer else None
        url = "ws" + options.url.removeprefix("http").rstrip("/") + "/v1/ws"
        # A stack, so that a connection may outlive one block and still ends in one place.
        self.stack = contextlib.ExitStack()
        self.link = self.stack.enter_context(
            connect(url, additional_headers=headers, compression=None,
                    open_timeout=deadline.left()))
        hello = self.receive("the greeting")
        if hello.get("type") != "connected":
            raise Difference(f"WebSocket: greeted with {hello}, wanted connected")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stack.close()

    def receive(self, what):
        """The next message; heartbeats and notices about claims are passed over."""
        from websockets.exceptions import ConnectionClosed

        while True:
            try:
                message = json.loads(self.link.recv(timeout=self.deadline.left()))
            except TimeoutError:
                raise Difference(f"WebSocket: out of time while waiting for {what}") from None
            except ConnectionClosed as closed:
                raise Difference(f"WebSocket: closed while waiting for {what}: {closed}") from None
            notices = ("pong", "checkpoint_submitted", "proof_submitted", "session_completed")
            if message.get("type") in notices or message.get("id") in self.refused:
                continue
            return message

    def init(self, account, session_id):
        """Names the session; resets nothing, however often it is sent."""
        number = self.send({"type": "session_init", "session_id": session_id,
                            "jobId": account.job, "chain_id": self.options.chain_id})
        ack = self.receive("session_init_ack")
        good = ack.get("type") == "session_init_ack" and ack.get("status") == "success"
        if not good or ack.get("id") != number:
            raise Difference(f"job {account.job}: session_init {number} answered with {ack}")

    def send(self, message):
        """Sends a message under a new id; the id."""
        number = f"t{next(self.numbers)}"
        self.link.send(json.dumps({**message, "id": number}))
        return number

    def prompt(self, account, prompt, cancel_after=None, drop_after=None):
        """One prompt and its stream, cancelled or left after so many tokens."""
        where = f"job {account.job}, WebSocket"
        request = {"model": self.options.model, "prompt": prompt, "stream": True,
                   "max_tokens": self.options.max_tokens, "temperature": 0.7}
        number = self.send({"type": "prompt", "prompt": prompt, "jobId": account.job,
                            "chain_id": self.options.chain_id, "request": request})
        seen, is_cancelled = 0, False
        while True:
            message = self.receive(f"the stream of {where}")
            if message.get("id") != number:
                raise Difference(f"{where}: {message} does not echo id {number}")
            if message["type"] == "stream_end":
                break
            if message["type"] == "error":
                self.refused.add(number)
                raise refusal(message, seen, where)
            if message["type"] != "stream_chunk":
                raise Difference(f"{where}: {message} in the middle of a stream")
            seen += message["tokens"]
            if drop_after is not None and seen >= drop_after:
                self.drop()
                account.add(seen, UNRECORDED_MAX)
                return
            if cancel_after is not None and seen >= cancel_after and not is_cancelled:
                is_cancelled = True
                cancel = {"type": "stream_cancel", "session_id": str(account.job)}
                self.link.send(json.dumps(cancel))
        if counted(message, where) != seen:
            raise Difference(f"{where}: chunks carried {seen} tokens, stream_end says {message}")
        # The text may have ended by itself before the cancel arrived.
        reason = message.get("finish_reason", message.get("reason"))
        if is_cancelled and reason not in ("cancelled", "stop", "length"):
            raise Difference(f"{where}: a cancelled stream ended with {reason}")
        account.add(seen)

    def drop(self):
        """Breaks the connection as a lost network does: no close frame, a reset."""
        raw = self.link.socket
        try:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is gone already
        raw.close()


def refusal(message, seen, where):
    """An error message as an exception: `Busy` where nothing was made yet."""
    code = str(message.get("code", "")).lower()
    is_busy = any(word in code for word in ("rate_limit", "unavailable", "busy", "capacity"))
    return Busy(where) if is_busy and seen == 0 else Difference(f"{where}: {message}")


class Run:
    """One run over all sessions."""

    def __init__(self, options):
        self.options = options
        self.deadline = Deadline(options.deadline)
        self.chain = Chain(options, self.deadline)
        options.chain_id = self.chain.chain_id
        self.rest = Rest(options, self.deadline)
        if not options.model:
            options.model = self.rest.json("GET", "/v1/models")["data"][0]["id"]
        self.accounts = [Account(job) for job in self.jobs()]
        for account in self.accounts:
            # A session may have a history: only what is added from here on is compared.
            account.recorded = account.seen = self.recorded(account)

    def jobs(self):
        """The sessions to use: given, printed by a command, or opened here."""
        options = self.options
        if options.jobs:
            return [int(job) for job in options.jobs.split(",")]
        if options.sessions_command:
            command = shlex.split(options.sessions_command)
            return [opened_by(command) for _ in range(options.sessions)]
        return [self.chain.open_session(options) for _ in range(options.sessions)]

    def session(self, account):
        """What the node says of a session."""
        return self.rest.json("GET", f"/v1/sessions/{account.job}")

    def recorded(self, account):
        """Tokens in the ledger; a difference when they became fewer, or fewer than claimed."""
        used = self.chain.tokens_used(account.job)
        tokens = first(self.session(account), "tokens_recorded", "recorded", "tokens_used")
        with account.lock:
            if tokens < account.recorded:
                raise Difference(f"job {account.job}: recorded fell from {account.recorded} "
                                 f"to {tokens}: something reset the count")
            account.recorded = tokens
        if used > tokens:
            raise Difference(f"job {account.job}: {used} tokens on chain, {tokens} recorded")
        return tokens

    def settled(self, account, is_last=False):
        """Waits until all that was seen is recorded, and checks that it is no more.

        `is_last` also waits for what might still be added by mistake.
        """
        equal, before = 0, -1
        waited = lambda: f"job {account.job}: {account.seen} seen, {account.recorded} recorded"
        for _ in self.deadline.poll(waited):
            now = self.recorded(account)
            equal = equal + 1 if now == before else 0
            before = now
            is_exact = account.slack == 0 and now == account.seen and not is_last
            if is_exact or (equal >= STABLE_POLLS and now >= account.seen):
                break
            if equal >= MISSING_POLLS:
                break
        low, high = account.seen, account.seen + account.slack
        if not low <= before <= high:
            raise Difference(f"job {account.job}: clients saw {low}, recorded {before}, "
                             f"allowed up to {high}")
        return before

    def retried(self, attempt):
        """Repeats an attempt that was refused for now."""
        for _ in self.deadline.poll(lambda: "a free place"):
            try:
                return attempt()
            except Busy:
                continue

    def alternate(self, account):
        """REST and WebSocket by turns on one session, its id in every form; nothing resets."""
        forms = [account.job, str(account.job), f"{account.job}n"]
        for turn, form in enumerate(forms * 2):
            prompt = PROMPTS[turn % len(PROMPTS)]
            self.retried(lambda f=form, p=prompt: self.rest.whole(account, f, p))
            self.settled(account)
            with WebSocket(self.options, self.deadline) as link:
                link.init(account, form)
                self.retried(lambda p=prompt, ws=link: ws.prompt(account, p))
                link.init(account, form)  # clients of 2026 send it before every prompt
            self.settled(account)
            self.retried(lambda f=form, p=prompt: self.rest.streamed(account, f, p))
            self.settled(account)

    def cancel(self, account):
        """A stream that its client cancels, then a prompt on the same connection."""
        with WebSocket(self.options, self.deadline) as link:
            link.init(account, f"{account.job}n")
            self.retried(lambda: link.prompt(account, PROMPTS[1], cancel_after=3))
            self.retried(lambda: link.prompt(account, PROMPTS[2]))
        self.settled(account)

    def drop(self, account):
        """Connections that break in mid-stream and come back to the same session."""
        link = WebSocket(self.options, self.deadline)
        link.init(account, str(account.job))
        self.retried(lambda: link.prompt(account, PROMPTS[1], drop_after=4))
        with WebSocket(self.options, self.deadline) as again:
            again.init(account, str(account.job))
            self.retried(lambda: again.prompt(account, PROMPTS[0]))
        self.retried(lambda: self.rest.streamed(account, str(account.job), PROMPTS[1], 4))
        self.retried(lambda: self.rest.whole(account, account.job, PROMPTS[2]))
        self.settled(account)

    def crowd(self):
        """All clients at once: several sessions, and several clients on each."""
        def client(number):
            account = self.accounts[number % len(self.accounts)]
            form = [account.job, str(account.job), f"{account.job}n"][number % 3]
            prompt = PROMPTS[number % len(PROMPTS)]
            if number % 2 == 0:
                with WebSocket(self.options, self.deadline) as link:
                    link.init(account, form)
                    self.retried(lambda: link.prompt(account, prompt))
            elif number % 4 == 1:
                self.retried(lambda: self.rest.streamed(account, form, prompt))
            else:
                self.retried(lambda: self.rest.whole(account, form, prompt))

        with concurrent.futures.ThreadPoolExecutor(self.options.clients) as pool:
            for done in [pool.submit(client, n) for n in range(self.options.clients)]:
                done.result()
        for account in self.accounts:
            self.settled(account)

    def claimed(self, account):
        """Waits until the chain has all but the tail; the job's row of the table."""
        recorded = self.settled(account, is_last=True)
        used = -1
        waited = lambda: (f"the chain: job {account.job} has {used} of {recorded} recorded tokens "
                          f"on chain, wanted all but a tail under {CLAIM_MIN}")
        for _ in self.deadline.poll(waited):
            used = self.chain.tokens_used(account.job)
            claims = self.chain.claims(account.job)
            # A claim mined between the two answers would make them differ.
            is_steady = used == self.chain.tokens_used(account.job)
            if is_steady and recorded - used < CLAIM_MIN:
                break
        self.check_claims(account, used, claims)
        return {"job": account.job, "requests": account.requests, "client": account.seen,
                "ledger": recorded, "chain": used, "tail": recorded - used,
                "claims": [{"tokens": tokens, "tx": tx} for tokens, tx in claims]}

    def check_claims(self, account, used, claims):
        """No claim under the minimum, no padding, each as the node itself reports it."""
        job, total = account.job, sum(tokens for tokens, _ in claims)
        if total != used:
            raise Difference(f"job {job}: events claim {total} tokens, the contract has {used}")
        reported = {claim_transaction(claim): claim["tokens"]
                    for claim in self.session(account).get("claims", [])}
        for tokens, transaction in claims:
            if tokens < CLAIM_MIN:
                raise Difference(f"job {job}: {transaction} claims {tokens}, under {CLAIM_MIN}")
            if self.chain.receipt(transaction)["status"] != "0x1":
                raise Difference(f"job {job}: {transaction} failed on chain")
            if reported.get(transaction.lower()) != tokens:
                raise Difference(f"job {job}: {transaction} claims {tokens} on chain, the node "
                                 f"reports {reported.get(transaction.lower())}")

    def scenes(self):
        """Everything; the table's rows."""
        for name, scene in [("REST and WebSocket alternating", self.alternate),
                            ("a cancelled stream", self.cancel),
                            ("dropped and resumed connections", self.drop)]:
            say(f"job {self.accounts[0].job}: {name}")
            scene(self.accounts[0])
        say(f"{self.options.clients} clients on {len(self.accounts)} sessions at once")
        self.crowd()
        say("waiting for the claims")
        return [self.claimed(account) for account in self.accounts]


def claim_transaction(claim):
    """The transaction hash of a claim as the node reports it, lower case."""
    return (claim.get("tx_hash") or claim.get("tx") or "").lower()


def first(body, *names):
    """The first of several fields that is there."""
    for name in names:
        if body.get(name) is not None:
            return int(body[name])
    raise Difference(f"the session has none of {', '.join(names)}: {body}")


def opened_by(command):
    """Runs a command that opens a session and prints {"job_id":N} on its last line."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Difference(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
    return int(json.loads(done.stdout.strip().splitlines()[-1])["job_id"])


def say(text):
    """Progress, beside the result."""
    print(f"test_token_tracking: {text}", file=sys.stderr, flush=True)


def table(rows):
    """The rows as text."""
    columns = ("job", "requests", "client", "ledger", "chain", "tail", "claims")
    lines = [columns] + [[len(row["claims"]) if c == "claims" else row[c] for c in columns]
                         for row in rows]
    return "\n".join("".join(f"{cell!s:>10}" for cell in line) for line in lines)


def summary(rows):
    """The totals of a run without difference."""
    total = {key: sum(row[key] for row in rows) for key in ("client", "ledger", "chain", "tail")}
    return {"ok": True, "tokens_client": total["client"], "tokens_ledger": total["ledger"],
            "tokens_chain": total["chain"], "unclaimable_tail": total["tail"],
            "claims": sum(len(row["claims"]) for row in rows), "sessions": rows}


def run(options):
    """One run; the summary, or the difference that was found."""
    try:
        rows = Run(options).scenes()
    except (Difference, OSError, ValueError, KeyError, http.client.HTTPException) as found:
        kind = "" if isinstance(found, Difference) else f"{type(found).__name__}: "
        return {"ok": False, "difference": f"{kind}{found}"}, None
    return summary(rows), rows


def parser():
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = options.add_argument
    add("--url", default="http://127.0.0.1:8080", help="the node (default: %(default)s)")
    add("--rpc", default="http://127.0.0.1:8545", help="the chain (default: %(default)s)")
    add("--marketplace", help="address of JobMarketplace")
    add("--contract-version", default="v3", choices=sorted(TOKENS_USED_WORD))
    add("--jobs", help="ids of open sessions: 1,2,3")
    add("--sessions-command", help='opens one session and prints {"job_id":N}')
    add("--depositor", help="opens sessions from this account; the chain must hold its key")
    add("--host", help="with --depositor: the host's address")
    add("--price", type=int, default=10**14, help="with --depositor: wei a token")
    add("--deposit", type=int, default=10**18, help="with --depositor: wei")
    add("--max-duration", type=int, default=86400, help="with --depositor: seconds")
    add("--sessions", type=int, default=4, help="how many to open (default: %(default)s)")
    add("--clients", type=int, default=20, help="clients at once (default: %(default)s)")
    add("--max-tokens", type=int, default=40, help="of each prompt (default: %(default)s)")
    add("--model", help="model to ask for (default: the node's first)")
    add("--bearer", help="session token, where the node asks for one")
    add("--deadline", type=float, default=600, help="seconds for everything (default: %(default)s)")
    add("--json", action="store_true", help="print the JSON line only")
    add("--self-test", action="store_true", help="check this script against a lying node")
    return options


def check_usage(options, usage):
    """Ends with status 2 where something is missing."""
    try:
        import websockets  # noqa: F401  (only whether it is there)
    except ModuleNotFoundError:
        usage.error("the package websockets is missing: python3 -m pip install websockets")
    if options.self_test:
        return
    if not options.marketplace:
        usage.error("--marketplace is missing")
    if not (options.jobs or options.sessions_command or (options.depositor and options.host)):
        usage.error("name sessions: --jobs, --sessions-command, or --depositor with --host")


def self_test(options):
    """Runs against a small node, honest and then with each fault; every fault must be found for its
    own reason."""
    sys.path.insert(0, f"{sys.path[0]}/tests/shell")
    import fake_node

    globals()["POLL_SECONDS"] = 0.03  # nothing here is slow
    failures = []
    for fault in fake_node.FAULTS:
        with fake_node.FakeNode(fault) as node:
            options.url = options.rpc = node.url
            options.marketplace, options.jobs, options.model = fake_node.MARKETPLACE, "1,139", None
            options.deadline = 60 if fault is None else 8
            result, _ = run(options)
        difference = result.get("difference", "all agree")
        is_right = fake_node.FAULTS[fault] in difference
        say(f"{'ok' if is_right else 'WRONG'}: {fault or 'honest'}: {difference}")
        if not is_right:
            failures.append(fault or "honest")
    print(json.dumps({"ok": not failures, "cases": len(fake_node.FAULTS), "wrong": failures}))
    return 1 if failures else 0


def main():
    """Command line."""
    usage = parser()
    options = usage.parse_args()
    check_usage(options, usage)
    if options.self_test:
        return self_test(options)
    begun = time.monotonic()
    result, rows = run(options)
    if rows and not options.json:
        print(table(rows))
    if not result["ok"]:
        say(f"DIFFERENCE: {result['difference']}")
    result["seconds"] = round(time.monotonic() - begun, 1)
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
