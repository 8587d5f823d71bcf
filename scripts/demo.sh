#!/usr/bin/env bash
# The main job on real parts: a real model answers over REST and WebSocket, the tokens of one paid
# session are counted, claimed on a real EVM and paid, and every claimed token is derived again.
# Ends by itself and leaves nothing running.
#
#   scripts/demo.sh [--contract VERSION] [--payment-token KIND] [--keep]
#
#   --contract VERSION    v3a, v3, v4, v4-late, v5, v6 or v7 (default: v3)
#   --payment-token KIND  native or erc20 (default: native)
#   --keep                leaves chain and node up and prints how to use them
#
# The last line is one JSON object.
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/tools.sh"
# shellcheck source=scripts/lib/system.sh
source "$TALLY_ROOT/scripts/lib/system.sh"
# shellcheck source=scripts/lib/stack.sh
source "$TALLY_ROOT/scripts/lib/stack.sh"

KEEP=no
CONTRACT=v3
PAYMENT_TOKEN=native
while [ $# -gt 0 ]; do
    case "$1" in
    --keep) KEEP=yes ;;
    --contract | --payment-token)
        [ $# -ge 2 ] || die "$1 wants a value"
        case "$1" in
        --contract) CONTRACT=$2 ;;
        *) PAYMENT_TOKEN=$2 ;;
        esac
        shift
        ;;
    -h | --help)
        sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "$0"
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
clean_up() {
    local status=$?
    if [ "$KEEP" = yes ] && [ "$status" = 0 ]; then return; fi
    stack_stop
    if [ "$status" = 0 ]; then rm -rf "$STATE"; else say "logs are in $STATE"; fi
}
STACK_STATE=$STATE
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "fetching the model"
MODEL=$("$TALLY_ROOT/scripts/fetch-model.sh" | tail -n 1)
[ -f "$MODEL" ] || die "no model file: $MODEL"
stack_start "$STATE" "$MODEL" --contract "$CONTRACT" --payment-token "$PAYMENT_TOKEN" --open-session

"$PYTHON" "$TALLY_ROOT/scripts/demo/paid_session.py" --url "$STACK_URL" \
    --node-pid "$STACK_NODE_PID" --node-log "$STACK_LOG" --chain "$STACK_CHAIN" \
    --started "$STARTED" --program "$STACK_BINARY" --data-dir "$STATE/data" --weights "$MODEL"

if [ "$KEEP" = yes ]; then
    disown "$STACK_NODE_PID"
    {
        echo
        echo "chain: $(stack_chain .rpc_url)   node: $STACK_URL   logs: $STATE"
        echo "another session:"
        echo "  scripts/open-session.sh --rpc $(stack_chain .rpc_url)" \
            "--marketplace $(stack_chain .addresses.job_marketplace)" \
            "--host $(stack_chain .accounts.host.address)"
        echo "a prompt:"
        echo "  curl -sN $STACK_URL/v1/inference -H 'content-type: application/json' -d" \
            "'{\"job_id\":JOB,\"model\":\"MODEL\",\"prompt\":\"Hello\",\"max_tokens\":50," \
            "\"stream\":true}'"
        echo "stop both:"
        echo "  kill $STACK_NODE_PID; scripts/devchain.sh --stop --state-dir $STATE/chain"
    } >&2
fi
