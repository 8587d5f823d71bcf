#!/usr/bin/env bash
# Holds the worker protocol (docs/spec/worker-protocol.md) against a worker, from outside.
#
#   scripts/worker-conformance.sh URL [--slots N] [--queue N] [--context N] [--times]
#       any worker; TALLY_WORKER_TOKEN is sent where it is set. --context is its model's: prompts
#       beyond it must be refused. --times holds what the page says of /health and /cancel too.
#   scripts/worker-conformance.sh --own
#       a `tally worker` of its own on the pinned model, with a token
#
# The last line of standard output is {"ok", "passed", "failed"}.
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/tools.sh"
# shellcheck source=scripts/lib/system.sh
source "$TALLY_ROOT/scripts/lib/system.sh"

need_commands curl=curl python3=python3

suite() { python3 "$TALLY_ROOT/scripts/worker/conformance.py" "$@"; }

# Starts a worker on a free port, runs the suite, and ends the worker by a signal.
own() {
    need_cargo
    local binary="${CARGO_TARGET_DIR:-$TALLY_ROOT/target}/debug/tally" model port
    (cd "$TALLY_ROOT" && cargo build --quiet --bin tally >&2) || die "tally does not build"
    model=$("$TALLY_ROOT/scripts/fetch-model.sh" | tail -n 1)
    port=$(python3 -c 'import socket
s = socket.socket()
s.bind(("", 0))
print(s.getsockname()[1])')
    export TALLY_WORKER_TOKEN=conformance
    log=$(mktemp "${TMPDIR:-/tmp}/tally-worker.XXXXXX")
    "$binary" worker --worker-id conformance --model "$model" --port "$port" \
        --callback-url http://localhost:9999 >"$log" &
    worker=$!
    trap 'kill "$worker" 2>/dev/null || true; rm -f "$log"' EXIT
    until curl -fs "http://127.0.0.1:$port/health" >/dev/null; do
        kill -0 "$worker" 2>/dev/null || die "the worker ended: $(cat "$log")"
        sleep 0.1
    done
    suite "http://127.0.0.1:$port" --context 8192
    kill -TERM "$worker"
    wait "$worker" || die "the worker did not end in order: $(tail -n 3 "$log")"
}

case "${1:-}" in
'' | -h | --help) sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}" ;;
--own)
    [ $# -eq 1 ] || die "--own takes nothing else"
    own
    ;;
*) suite "$@" ;;
esac
