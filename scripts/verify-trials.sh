#!/usr/bin/env bash
# Tries `tally verify`: honest turns of the real model and of small random ones, on engines of every
# kind, must be found right, and cheats of every kind found out. The last line of standard output is
# JSON: {"ok","honest_turns","false_rejects","cheats":{kind:{"tried","accepted"}},
# "verify_cost_ratio","blob_bytes_per_token"}. Ends with 1 where something is not as it should be;
# the blob is kept then in the folder for temporary files.
#
#   scripts/verify-trials.sh [--turns N] [--cheats N] [--seed S]    (10000, 1000, 1)
#
#   --turns N   honest turns, at least
#   --cheats N  cheats of each kind
#   --seed S    all requests, engines and lies follow from it
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/tools.sh"
# shellcheck source=scripts/lib/system.sh
source "$TALLY_ROOT/scripts/lib/system.sh"

TURNS=10000
CHEATS=1000
SEED=1
while [ $# -gt 0 ]; do
    case $1 in
    --turns) TURNS=${2:?a number of turns} ;;
    --cheats) CHEATS=${2:?a number of cheats} ;;
    --seed) SEED=${2:?a seed} ;;
    *) die "unknown option $1; there are --turns N, --cheats N, --seed S" ;;
    esac
    shift 2
done

cd "$TALLY_ROOT"
need_cargo
need_commands cc=build-essential jq=jq
MODEL=${TALLY_TEST_MODEL:-$(./scripts/fetch-model.sh | tail -n 1)}
say "building"
BUILT=$(cargo build --quiet --workspace --features test-support --bench trials \
    --message-format=json)
PROGRAM=$(jq -r 'select(.reason == "compiler-artifact" and .target.name == "trials")
    | .executable // empty' <<<"$BUILT" | tail -n 1)
[ -x "$PROGRAM" ] || die "the trials were not built"

say "$TURNS turns, $CHEATS cheats of each kind, seed $SEED"
STARTED=$SECONDS
STATUS=0
OUTPUT=$("$PROGRAM" --model "$MODEL" --turns "$TURNS" --cheats "$CHEATS" --seed "$SEED") ||
    STATUS=$?
say "took $((SECONDS - STARTED)) s"
RESULT=$(grep '^{' <<<"$OUTPUT" | tail -n 1) || die "the trials gave no result"
jq -e . <<<"$RESULT" >/dev/null || die "the trials gave no result: $RESULT"
printf '%s\n' "$RESULT"
exit "$STATUS"
