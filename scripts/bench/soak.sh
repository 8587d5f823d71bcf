#!/usr/bin/env bash
# Twenty-four conversations on one engine, with readers that leave at random: blocks that leak,
# sessions that starve, memory that grows, texts that change.
#
#   scripts/bench/soak.sh [--model FILE] [--minutes N] [--threads T] [--seed N]
#
#   --model FILE  a GGUF file (default: the pinned SmolLM2-135M-Instruct Q4_1)
#   --minutes N   (default: 10)
#   --threads T   (default: 2)
#   --seed N      (default: 1)
#
# One JSON line on standard output. Exit code 1 if a block leaked, an answer is not what it is
# alone, a sequence failed, the slowest session had less than half of the mean rate, or memory
# grew by more than 5 % after the first quarter.
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/tools.sh"
# shellcheck source=scripts/lib/system.sh
source "$TALLY_ROOT/scripts/lib/system.sh"

model=
minutes=10
threads=2
seed=1
while [ $# -gt 0 ]; do
    case "$1" in
    -h | --help)
        sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
        exit 0
        ;;
    --model)
        model=$(realpath "${2:?--model wants a file}")
        shift
        ;;
    --minutes | --threads | --seed)
        [[ "${2:-}" =~ ^[1-9][0-9]{0,3}$ ]] || die "$1 wants a whole number from 1"
        declare "${1#--}=$2"
        shift
        ;;
    *) die "unknown option: $1 (--help lists them)" ;;
    esac
    shift
done

cd "$TALLY_ROOT"
need_cargo
need_commands cc=build-essential jq=jq
[ -n "$model" ] || model=$("$TALLY_ROOT/scripts/fetch-model.sh" | tail -n 1)
say "soak of $minutes minutes, $threads threads, seed $seed"
line=$(cargo bench --quiet --profile dev -p tally-engine --bench soak -- \
    "$model" "$threads" "$((minutes * 60))" "$seed")
printf '%s\n' "$line"
jq -e '.leaked_blocks == 0 and .answers_that_differ == 0 and .errors == 0
    and .slowest_to_mean >= 0.5 and .rss_mib_end <= 1.05 * .rss_mib_early' >/dev/null <<<"$line" ||
    die "the soak shows a fault"
