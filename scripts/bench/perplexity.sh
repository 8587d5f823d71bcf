#!/usr/bin/env bash
# Our engine's perplexity beside llama.cpp's: the same file, text and rule (chunks of 512 tokens,
# of each the last 255 predicted), and how sure their ratio is.
#
#   scripts/bench/perplexity.sh [--model FILE ...] [--models DIR] [--threads T] [--text FILE]
#       [--chunks N]
#
#   --model FILE  a GGUF file both can read (default: the pinned SmolLM2-135M-Instruct Q4_1);
#                 given again, one after the other
#   --models DIR  all GGUF files of a folder, one after the other
#   --threads T   (default: 2); no result depends on it
#   --text FILE   (default: the committed novel)
#   --chunks N    read no more than so many (default: all)
#
#   PEER=dir      folder with llama-perplexity; built there where it is missing
#
# One JSON line to a model on standard output: see scripts/bench/perplexity.py.
set -euo pipefail

# shellcheck source=scripts/lib/bench.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/bench.sh"

read_options --model=model --models=models --threads=whole:3 --text=file --chunks=whole:4 -- "$@"
given[text]=${given[text]:-$TALLY_ROOT/crates/engine/tests/fixtures/reference/eighty-days.txt}
passed_on threads text chunks

cd "$TALLY_ROOT"
need_commands python3=python3
need_models
need_peer llama-perplexity
OURS=$(engine_bench perplexity)
for model in "${models[@]}"; do
    python3 "$TALLY_ROOT/scripts/bench/perplexity.py" --ours "$OURS" --peer "$PEER" \
        --model "$model" "${passed[@]}"
done
