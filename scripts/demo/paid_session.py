"""One paid session, as a client lives it: prompts over REST and WebSocket, claims, completion.

Prints the answers as they stream; the last line is one JSON object. Exits non-zero when any count
differs between client, ledger and chain. Uses the standard library and `websockets` only.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import websockets

WAIT_SECONDS = 120
# Which output of sessionJobs(uint256), from 0, is tokensUsed.
TOKENS_USED_AT = {"v3a": 6, "v3": 7, "v4": 7, "v4-late": 7, "v5": 6, "v6": 6, "v7": 6}
NATIVE = "0x" + "0" * 40
REST_PROMPTS = [
    ("Explain in a few sentences why the sky is blue.", True, 110),
    ("Name three uses of a pencil.", False, 60),
]
WEBSOCKET_PROMPTS = [
    ("Tell me a short story about a lighthouse.", 110),
    ("And how does it end?", 60),
]


class Failure(Exception):
    """What the demo promises did not happen."""


def call(url, body=None):
    """One JSON request; the answer as an object."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as answer:
        return json.load(answer)


def rpc(chain, method, params):
    answer = call(
        chain["rpc_url"], {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    )
    if "error" in answer:
        raise Failure(f"{method}: {answer['error']}")
    return answer["result"]


def word(value):
    """An ABI word of a number or an address."""
    return f"{int(value, 16) if isinstance(value, str) else value:064x}"


def earned(chain, token):
    # getBalance(address,address) of HostEarnings; the zero token is the native currency.
    data = "0xd4fac45d" + word(chain["accounts"]["host"]["address"]) + word(token)
    to = chain["addresses"]["host_earnings"]
    return int(rpc(chain, "eth_call", [{"to": to, "data": data}, "latest"]), 16)


def tokens_on_chain(chain, job):
    data = "0xef39d372" + word(job)
    to = chain["addresses"]["job_marketplace"]
    result = rpc(chain, "eth_call", [{"to": to, "data": data}, "latest"])
    # The outputs end in dynamic strings, but are not wrapped: word n is output n.
    at = TOKENS_USED_AT[chain["contract_version"]]
    return int(result[2 + 64 * at : 2 + 64 * (at + 1)], 16)


def wait_until(what, probe):
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        found = probe()
        if found:
            return found
        time.sleep(0.2)
    raise Failure(f"waited {WAIT_SECONDS} s for: {what}")


def node_log(args):
    with open(args.node_log, encoding="utf-8") as log:
        return log.readlines()


def node_is_healthy(args):
    try:
        os.kill(args.node_pid, 0)
    except ProcessLookupError:
        tail = "".join(node_log(args)[-15:])
        raise Failure(f"the node ended:\n{tail}") from None
    # Until this one listens, a node of somebody else's may answer at the port that was free.
    if not any("listening" in line for line in node_log(args)):
        return False
    try:
        return call(f"{args.url}/health")["status"] == "healthy"
    except OSError:
        return False


def show(text):
    print(text, end="", flush=True)


def ask_rest(args, job, model, prompt, stream, max_tokens):
    """A prompt over REST; the tokens the answer says it cost."""
    body = {
        "job_id": job, "model": model, "prompt": prompt, "max_tokens": max_tokens,
        "temperature": 0.7, "stream": stream,
    }
    show(f"\n[REST{', SSE' if stream else ''}] {prompt}\n")
    if not stream:
        answer = call(f"{args.url}/v1/inference", body)
        show(answer["content"] + "\n")
        return answer["tokens_used"]
    request = urllib.request.Request(
        f"{args.url}/v1/inference", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    seen = last = None
    with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as answer:
        for line in answer:
            text = line.decode().strip()
            if not text.startswith("data:"):
                continue
            payload = text[5:].strip()
            if payload == "[DONE]":
                seen = last
                break
            frame = json.loads(payload)
            if "finish_reason" in frame and frame["finish_reason"]:
                last = frame["tokens_used"]
            else:
                show(frame.get("content", ""))
    show("\n")
    if seen is None:
        raise Failure("the stream ended without [DONE]")
    return seen


async def ask_websocket(args, job, model):
    """Two prompts on one WebSocket session; the tokens of all chunks."""
    total = 0
    async with websockets.connect(args.url.replace("http", "ws", 1) + "/v1/ws") as socket:
        await socket.send(json.dumps({
            "type": "session_init", "session_id": f"{job}n", "jobId": job, "id": "init",
        }))
        for number, (prompt, max_tokens) in enumerate(WEBSOCKET_PROMPTS):
            show(f"\n[WebSocket] {prompt}\n")
            await socket.send(json.dumps({
                "type": "prompt", "id": f"p{number}", "prompt": prompt,
                "request": {"model": model, "max_tokens": max_tokens, "temperature": 0.7,
                            "stream": True},
            }))
            seen = 0
            async for raw in socket:
                message = json.loads(raw)
                if message["type"] == "stream_chunk":
                    seen += message["tokens"]
                    show(message["content"])
                elif message["type"] == "error":
                    raise Failure(f"WebSocket: {message}")
                elif message["type"] == "stream_end":
                    if message["tokens_used"] != seen:
                        raise Failure(f"chunks carried {seen} tokens: {message}")
                    break
            show("\n")
            total += seen
    return total


def run(args):
    chain = json.loads(args.chain)
    job = chain["job"]["id"]
    token = chain.get("payment_token", NATIVE)
    wait_until("a healthy node", lambda: node_is_healthy(args))
    model = call(f"{args.url}/v1/models")["data"][0]["id"]
    print(f"contract {chain['contract_version']}, paid in "
          f"{'native currency' if token == NATIVE else token}")
    print(f"job {job}, model {model}, host {chain['accounts']['host']['address']}")
    tokens = sum(ask_rest(args, job, model, *prompt) for prompt in REST_PROMPTS)
    tokens += asyncio.run(ask_websocket(args, job, model))
    print(f"\n{tokens} tokens received; waiting for claims and for the session's completion")
    shown = set()

    def settled():
        report = call(f"{args.url}/v1/sessions/{job}")
        for claim in report["claims"]:
            line = f"  claim {claim['seq']}: {claim['tokens']} tokens, {claim['tx']}, " \
                   f"{claim['status']}"
            if line not in shown:
                shown.add(line)
                print(line, flush=True)
        return report if report["phase"] == "completed" else None

    report = wait_until("the session's completion", settled)
    on_chain = tokens_on_chain(chain, job)
    payment = earned(chain, token)
    unit = "wei" if token == NATIVE else "units"
    tail = report["tokens_recorded"] - report["tokens_confirmed"]
    print(f"completed: {on_chain} tokens paid, {tail} under the contract's minimum of 100, "
          f"{payment} {unit} earned")
    result = {
        "ok": True, "contract": chain["contract_version"],
        "payment_token": "native" if token == NATIVE else "erc20",
        "job": job, "tokens_client": tokens,
        "tokens_ledger": report["tokens_recorded"], "tokens_chain": on_chain,
        "claims": [{"tokens": claim["tokens"], "tx": claim["tx"], "status": claim["status"]}
                   for claim in report["claims"]],
        "unclaimable_tail": tail, f"earned_{unit}": str(payment), "model": model,
        "seconds": int(time.time()) - args.started,
    }
    verdict = verified(args, chain, job)
    print(f"verified: {verdict['tokens_derived']} of {verdict['tokens']} claimed tokens came out "
          "again, with the states, seeds and the signature that were claimed")
    result["verified"] = {key: verdict[key] for key in ("ok", "complete", "tokens_derived")}
    problems = []
    if not verdict["ok"] or not verdict["complete"] or verdict["tokens_derived"] != on_chain:
        problems.append(f"the claims could not be verified: {verdict}")
    if tokens != report["tokens_recorded"]:
        problems.append("client and ledger differ")
    if on_chain + tail != tokens:
        problems.append("chain and tail do not add up to the client's count")
    if not 0 <= tail < 100:
        problems.append("the tail is no tail")
    # What the depositor paid for them, less the treasury's share; both divisions round down.
    price, fee = int(chain["job"]["price"]), chain["fee_basis_points"]
    paid = on_chain * price // chain["price_precision"]
    if on_chain < 100 or payment != paid - paid * fee // 10_000:
        problems.append(f"earned {payment} for {on_chain} tokens at {price}")
    if any(claim["status"] != "confirmed" for claim in report["claims"]):
        problems.append("a claim is not confirmed")
    if token != NATIVE and earned(chain, NATIVE) != 0:
        problems.append("paid in another currency than agreed")
    if problems:
        result.update(ok=False, problems=problems)
    print(json.dumps(result), flush=True)
    return 0 if not problems else 1


def verified(args, chain, job):
    """What `tally verify` says to all that was claimed: the last claim's root covers it.

    The blob comes from the node's ledger, the proof bytes from the chain.
    """
    command = [args.program, "verify", "--job", str(job), "--weights", args.weights, "--json",
               "--data-dir", args.data_dir, "--on-chain", "--chain-rpc-urls", chain["rpc_url"],
               "--chain-id", str(chain["chain_id"]),
               "--chain-marketplace", chain["addresses"]["job_marketplace"]]
    # In the node's folder, so that no settings of the user's are read.
    folder = str(Path(args.data_dir).parent)
    environment = {"PATH": os.environ["PATH"], "HOME": folder}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment,
                          check=False)
    if not done.stdout.strip():
        raise Failure(f"tally verify failed: {done.stderr.strip()}")
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--node-pid", required=True, type=int)
    parser.add_argument("--node-log", required=True)
    parser.add_argument("--chain", required=True, help="what scripts/devchain.sh printed")
    parser.add_argument("--started", required=True, type=int, help="Unix time of the start")
    parser.add_argument("--program", required=True, help="the node's program, to verify claims")
    parser.add_argument("--data-dir", required=True, help="the node's data folder")
    parser.add_argument("--weights", required=True, help="the model's file")
    args = parser.parse_args()
    try:
        return run(args)
    except (Failure, OSError, urllib.error.URLError) as error:
        print(json.dumps({"ok": False, "error": str(error)}))
        return 1


if __name__ == "__main__":
    sys.exit(main())
