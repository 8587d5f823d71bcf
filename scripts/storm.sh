#!/usr/bin/env bash
# Many claims on a real EVM through an RPC endpoint that loses answers, throttles, fails, remembers
# old ones and lies about nonces. Each claim must count exactly once.
#
#   scripts/storm.sh [--claims N] [--jobs J] [--endpoints E] [--seed S]
#
#   --claims N     how many (default: 1000)
#   --jobs J       sessions they are spread over (default: 40)
#   --endpoints E  RPC endpoints, each with its own faults (default: 1)
#   --seed S       seed of the weather (default: another one each time)
#
# The last line is one JSON object: ok, claims, double_claims, lost_claims, faults and more.
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/tools.sh"
# shellcheck source=scripts/lib/system.sh
source "$TALLY_ROOT/scripts/lib/system.sh"

claims=1000
jobs=40
endpoints=1
seed=
while [ $# -gt 0 ]; do
    case "$1" in
    -h | --help)
        sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
        exit 0
        ;;
    --claims | --jobs | --endpoints | --seed)
        [[ "${2:-}" =~ ^[1-9][0-9]{0,8}$ ]] || die "$1 wants a whole number from 1"
        printf -v "${1#--}" %s "$2"
        shift
        ;;
    *) die "unknown option: $1 (--help lists them)" ;;
    esac
    shift
done

need_cargo
need_commands cc=build-essential python3=python3
need_tools
seed=${seed:-$(python3 -c 'import random; print(random.SystemRandom().randrange(1, 10**9))')}
TALLY_TEST_ANVIL=$(anvil_path)
export TALLY_TEST_ANVIL
export TALLY_STORM_CLAIMS=$claims TALLY_STORM_JOBS=$jobs TALLY_STORM_SEED=$seed
export TALLY_STORM_ENDPOINTS=$endpoints

LOG=$(mktemp "${TMPDIR:-/tmp}/tally-storm.XXXXXX")
trap 'rm -f "$LOG"' EXIT
say "$claims claims in $jobs sessions, seed $seed"
cd "$TALLY_ROOT"
status=0
cargo test --quiet --workspace --features test-support --test it \
    settlement::storm::every -- --nocapture >"$LOG" 2>&1 || status=$?
if [ "$status" != 0 ]; then
    cat "$LOG" >&2
    printf '{"ok":false,"claims":%s,"seed":%s}\n' "$claims" "$seed"
    exit "$status"
fi
grep -a '^{"' "$LOG" | tail -n 1
