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

# shellcheck source=scripts/lib/bench.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/bench.sh"

read_options --model=model --minutes=whole:4 --threads=whole:4 --seed=whole:4 -- "$@"
minutes=${given[minutes]:-10} threads=${given[threads]:-2} seed=${given[seed]:-1}

cd "$TALLY_ROOT"
need_models
SOAK=$(engine_bench soak)
say "soak of $minutes minutes, $threads threads, seed $seed"
line=$("$SOAK" "${models[-1]}" "$threads" "$((minutes * 60))" "$seed")
printf '%s\n' "$line"
jq -e '.leaked_blocks == 0 and .answers_that_differ == 0 and .errors == 0
    and .slowest_to_mean >= 0.5 and .rss_mib_end <= 1.05 * .rss_mib_early' >/dev/null <<<"$line" ||
    die "the soak shows a fault"
