#!/usr/bin/env bash
# Runs whole-node simulations from a seed on all cores. The last line of standard output is JSON:
# {"ok","runs","steps","violations","first_seed"}. Ends with 1 where a run found a violation; each
# is printed with its seed, which replays alone:
#
#   simulate.sh [--runs N] [--seed S]        (10000 runs, seed 1)
#   simulate.sh --replay SEED                everything that happens in one run
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/tools.sh"
# shellcheck source=scripts/lib/system.sh
source "$TALLY_ROOT/scripts/lib/system.sh"

RUNS=10000
SEED=1
REPLAY=
while [ $# -gt 0 ]; do
    case $1 in
    --runs) RUNS=${2:?a number of runs} ;;
    --seed) SEED=${2:?a seed} ;;
    --replay) REPLAY=${2:?a seed} ;;
    *) die "unknown option $1; there are --runs N, --seed S, --replay SEED" ;;
    esac
    shift 2
done

cd "$TALLY_ROOT"
need_cargo
need_commands cc=build-essential jq=jq
say "building"
BUILT=$(cargo test --quiet --workspace --features test-support --test sim --no-run \
    --message-format=json)
PROGRAM=$(jq -r 'select(.reason == "compiler-artifact" and .target.name == "sim")
    | .executable // empty' <<<"$BUILT" | tail -n 1)
[ -x "$PROGRAM" ] || die "the simulation was not built"

if [ -n "$REPLAY" ]; then
    TALLY_SIM_REPLAY=$REPLAY exec "$PROGRAM" --exact runs::replay --nocapture
fi
say "$RUNS runs from seed $SEED"
STARTED=$SECONDS
STATUS=0
OUTPUT=$(RUST_BACKTRACE=0 TALLY_SIM_RUNS=$RUNS TALLY_SIM_SEED=$SEED \
    "$PROGRAM" --exact runs::no_seed_breaks_the_sentence --nocapture 2>/dev/null) || STATUS=$?
say "took $((SECONDS - STARTED)) s"
RESULT=$(grep '^{"ok"' <<<"$OUTPUT" | tail -n 1) || die "the simulation gave no result"
grep -E '^(seed |events: )' <<<"$OUTPUT" || true
printf '%s\n' "$RESULT"
exit "$STATUS"
