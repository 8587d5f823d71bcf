#!/usr/bin/env bash
# Kills the node with -9 again and again while it streams and claims, on a real EVM in bad weather
# (reorganised blocks, dropped and stuck transactions, fees that jump, a second holder of the key,
# an RPC endpoint that loses answers) and on a disk that stalls; then lets it settle and audits
# every token.
#
#   scripts/chaos-chain.sh --kills N [--seed S] [--confirmations C] [--reorg-depth D]
#                          [--contract VERSION] [--payment-token KIND] [--binary PATH] [--keep]
#
#   --kills N             how often (default: 20)
#   --seed S              seed of all that is random here (default: another one each time)
#   --confirmations C     the node's setting (default: 4)
#   --reorg-depth D       deepest reorganisation (default: 3)
#   --contract VERSION    v3a, v3, v4, v4-late, v5, v6 or v7 (default: v3)
#   --payment-token KIND  native or erc20 (default: native)
#   --binary PATH         this node, instead of a debug build of this source
#   --keep                leave logs and ledger where they are
#
# The last line is one JSON object: ok, kills, double_claims, lost_claims, max_drift_tokens (most
# tokens of a streamed session that one kill left written and unrecorded) and more. The exit status
# is 0 when all is right.
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/tools.sh"
# shellcheck source=scripts/lib/system.sh
source "$TALLY_ROOT/scripts/lib/system.sh"

kills=20
seed=
confirmations=4
reorg_depth=3
contract=v3
payment_token=native
keep=false
binary=
while [ $# -gt 0 ]; do
    case "$1" in
    -h | --help)
        sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
        exit 0
        ;;
    --keep) keep=true ;;
    --binary)
        [ -x "${2:-}" ] || die "--binary wants an executable"
        binary=$(realpath "$2")
        shift
        ;;
    --contract | --payment-token)
        [ $# -ge 2 ] || die "$1 wants a value"
        name=${1#--}
        printf -v "${name//-/_}" %s "$2"
        shift
        ;;
    --kills | --seed | --confirmations | --reorg-depth)
        [[ "${2:-}" =~ ^[0-9]{1,9}$ ]] || die "$1 wants a whole number"
        name=${1#--}
        printf -v "${name//-/_}" %s "$2"
        shift
        ;;
    *) die "unknown option: $1 (--help lists them)" ;;
    esac
    shift
done
seed=${seed:-$(python3 -c 'import random; print(random.SystemRandom().randrange(10**9))')}

need_cargo
need_commands cc=build-essential jq=jq python3=python3
need_tools
MODEL=$("$TALLY_ROOT/scripts/fetch-model.sh" | tail -n 1)
STATE=$(mktemp -d "${TMPDIR:-/tmp}/tally-chaos.XXXXXX")
clean_up() {
    local status=$?
    "$TALLY_ROOT/scripts/devchain.sh" --stop --state-dir "$STATE/chain" >/dev/null 2>&1 || true
    if [ "$status" = 0 ] && [ "$keep" = false ]; then
        rm -rf "$STATE"
    else
        say "seed $seed; logs and ledger are in $STATE"
    fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ -z "$binary" ]; then
    say "building the node (the first build takes some minutes)"
    (cd "$TALLY_ROOT" && cargo build --quiet --bin tally >&2)
    binary=$(cd "$TALLY_ROOT" && realpath "${CARGO_TARGET_DIR:-target}")/debug/tally
fi
# A copy: a build that runs meanwhile must not change what comes back after a kill.
BINARY="$STATE/tally"
cp "$binary" "$BINARY"
cc -O1 -fPIC -shared -o "$STATE/slow_disk.so" "$TALLY_ROOT/scripts/chaos/slow_disk.c"
say "seed $seed"
CHAIN=$("$TALLY_ROOT/scripts/devchain.sh" --state-dir "$STATE/chain" --block-time 0 \
    --model-file "$MODEL" --dispute-window 10 --contract "$contract" \
    --payment-token "$payment_token")
python3 "$TALLY_ROOT/scripts/chaos/main.py" --chain "$CHAIN" --binary "$BINARY" \
    --model "$MODEL" --state "$STATE/node" --kills "$kills" --seed "$seed" \
    --confirmations "$confirmations" --reorg-depth "$reorg_depth" \
    --preload "$STATE/slow_disk.so"
