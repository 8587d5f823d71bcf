#!/usr/bin/env bash
# The main job on real parts: a real model answers over REST and WebSocket, the tokens of one paid
# session are counted, claimed on a real EVM and paid. Ends by itself and leaves nothing running.
#
#   scripts/demo.sh [--keep]
#
# --keep leaves chain and node up and prints how to use them. The last line is one JSON object.
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/tools.sh"
# shellcheck source=scripts/lib/system.sh
source "$TALLY_ROOT/scripts/lib/system.sh"

KEEP=no
while [ $# -gt 0 ]; do
    case "$1" in
    --keep) KEEP=yes ;;
    -h | --help)
        sed -n '2,8s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *) die "unknown option: $1" ;;
    esac
    shift
done

STARTED=$(date +%s)
need_cargo
need_commands cc=build-essential git=git curl=curl jq=jq python3=python3
need_tools
PYTHON=$(project_python)

STATE=$(mktemp -d "${TMPDIR:-/tmp}/tally-demo.XXXXXX")
CHAIN_STATE="$STATE/chain"
NODE_PID=
clean_up() {
    local status=$?
    if [ "$KEEP" = yes ] && [ "$status" = 0 ]; then return; fi
    if [ -n "$NODE_PID" ] && kill "$NODE_PID" 2>/dev/null; then wait "$NODE_PID" || true; fi
    "$TALLY_ROOT/scripts/devchain.sh" --stop --state-dir "$CHAIN_STATE" >/dev/null 2>&1 || true
    if [ "$status" = 0 ]; then rm -rf "$STATE"; else say "logs are in $STATE"; fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "building the node (the first build takes some minutes)"
cd "$TALLY_ROOT"
cargo build --quiet --bin tally >&2
TALLY="${CARGO_TARGET_DIR:-$TALLY_ROOT/target}/debug/tally"

say "fetching the model"
MODEL=$("$TALLY_ROOT/scripts/fetch-model.sh" | tail -n 1)
[ -f "$MODEL" ] || die "no model file: $MODEL"

say "starting a chain, deploying the contracts, opening a paid session"
PORT=$(free_port)
URL="http://127.0.0.1:$PORT"
CHAIN=$("$TALLY_ROOT/scripts/devchain.sh" --state-dir "$CHAIN_STATE" --model-file "$MODEL" \
    --model-repo HuggingFaceTB/SmolLM2-135M-Instruct-GGUF --model-name "$(basename "$MODEL")" \
    --api-url "$URL" --dispute-window 10 --open-session)
chain() { jq -er "$1" <<<"$CHAIN"; }

say "starting the node on $URL"
# A public key of the development chain; a real one comes from a keystore file.
TALLY_HOST_PRIVATE_KEY=$(chain .accounts.host.private_key) \
    "$TALLY" serve \
    --listen "127.0.0.1:$PORT" --public-url "$URL" --data-dir "$STATE/data" \
    --model-path "$MODEL" --model-repo HuggingFaceTB/SmolLM2-135M-Instruct-GGUF \
    --chain-rpc-urls "$(chain .rpc_url)" --chain-id "$(chain .chain_id)" \
    --chain-marketplace "$(chain .addresses.job_marketplace)" \
    --chain-node-registry "$(chain .addresses.node_registry)" \
    --chain-model-registry "$(chain .addresses.model_registry)" \
    --settlement-poll-milliseconds 500 --settlement-confirmations 2 \
    --settlement-grace-clean-seconds 2 \
    >"$STATE/node.out" 2>"$STATE/node.log" &
NODE_PID=$!

"$PYTHON" "$TALLY_ROOT/scripts/demo/paid_session.py" --url "$URL" --node-pid "$NODE_PID" \
    --node-log "$STATE/node.log" --chain "$CHAIN" --started "$STARTED"

if [ "$KEEP" = yes ]; then
    disown "$NODE_PID"
    {
        echo
        echo "chain: $(chain .rpc_url)   node: $URL   logs: $STATE"
        echo "another session:"
        echo "  scripts/open-session.sh --rpc $(chain .rpc_url)" \
            "--marketplace $(chain .addresses.job_marketplace)" \
            "--host $(chain .accounts.host.address)"
        echo "a prompt:"
        echo "  curl -sN $URL/v1/inference -H 'content-type: application/json' -d" \
            "'{\"job_id\":JOB,\"model\":\"MODEL\",\"prompt\":\"Hello\",\"max_tokens\":50," \
            "\"stream\":true}'"
        echo "stop both:"
        echo "  kill $NODE_PID; scripts/devchain.sh --stop --state-dir $CHAIN_STATE"
    } >&2
fi
