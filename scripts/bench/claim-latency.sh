#!/usr/bin/env bash
# How long a claim that is due waits for its broadcast, and what streams notice of a chain that
# hangs or is dead, on the real node with default settings.
#
#   scripts/bench/claim-latency.sh [OPTIONS] [--debug | --binary PATH]
#
#   --samples N  claims to time (default: 60)
#   --sessions N answers at once, whose claims become due together (default: 4)
#   --delay MS   what each call to the endpoint takes on the way (default: 50)
#   --rounds R   streams under each state of the chain (default: 6)
#   --debug      the debug build, which is there already where tests ran
#   --binary P   this node, instead of a build of this source
#
# The last line is one JSON object, times in milliseconds: claim_ms_* from the token that made the
# claim due (as the client saw it) to the first broadcast; gap_STATE_ms_* between the frames of a
# stream; ttft_STATE_ms_* to the first token of a later prompt of a known session.
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/tools.sh"
# shellcheck source=scripts/lib/system.sh
source "$TALLY_ROOT/scripts/lib/system.sh"

samples=60
sessions=4
delay=50
rounds=6
profile=release
binary=
while [ $# -gt 0 ]; do
    case "$1" in
    -h | --help)
        sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
        exit 0
        ;;
    --debug) profile=debug ;;
    --binary)
        [ -x "${2:-}" ] || die "--binary wants an executable"
        binary=$(realpath "$2")
        shift
        ;;
    --samples | --sessions | --delay | --rounds)
        [[ "${2:-}" =~ ^[1-9][0-9]{0,5}$ ]] || die "$1 wants a whole number from 1"
        printf -v "${1#--}" %s "$2"
        shift
        ;;
    *) die "unknown option: $1 (--help lists them)" ;;
    esac
    shift
done

need_cargo
need_commands cc=build-essential jq=jq python3=python3
need_tools
MODEL=$("$TALLY_ROOT/scripts/fetch-model.sh" | tail -n 1)
STATE=$(mktemp -d "${TMPDIR:-/tmp}/tally-latency.XXXXXX")
clean_up() {
    local status=$?
    "$TALLY_ROOT/scripts/devchain.sh" --stop --state-dir "$STATE/chain" >/dev/null 2>&1 || true
    if [ "$status" = 0 ]; then rm -rf "$STATE"; else say "logs are in $STATE"; fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ -z "$binary" ]; then
    say "building the node (the first build takes some minutes)"
    options=(--quiet --bin tally)
    [ "$profile" = debug ] || options+=(--release)
    (cd "$TALLY_ROOT" && cargo build "${options[@]}" >&2)
    binary=$(cd "$TALLY_ROOT" && realpath "${CARGO_TARGET_DIR:-target}")/$profile/tally
fi
CHAIN=$("$TALLY_ROOT/scripts/devchain.sh" --state-dir "$STATE/chain" --block-time 0 \
    --model-file "$MODEL" --dispute-window 10)
python3 "$TALLY_ROOT/scripts/bench/claim_latency.py" --chain "$CHAIN" --binary "$binary" \
    --model "$MODEL" --state "$STATE/node" --samples "$samples" --sessions "$sessions" \
    --delay "$delay" --rounds "$rounds"
