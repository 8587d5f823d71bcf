#!/usr/bin/env bash
# Our engine beside llama.cpp on the same file, threads and machine, in turn.
#
#   scripts/bench/engine.sh [--model FILE ...] [--models DIR] [--runs N] [--threads T] [--isa ISA]
#       [FIGURE ...]
#
#   --model FILE  a GGUF file both can read (default: the pinned SmolLM2-135M-Instruct Q4_1);
#                 given again, one after the other
#   --models DIR  all GGUF files of a folder, one after the other (scripts/bench/models.sh DIR makes
#                 SmolLM2 and a model of 1.1 billion weights in Q8_0, Q4_0 and Q4_K_M)
#   --runs N      of each, per figure (default: 5)
#   --threads T   (default: 2)
#   --isa ISA     scalar, avx2, avx512 or amx; give PEER a build that is restricted alike
#   FIGURE        decode-DEPTH, prefill-TOKENS or batch-SEQUENCES (default: those of
#                 docs/performance.md)
#
#   PEER=dir      folder with llama-bench and llama-batched-bench; built there where it is missing
#                 (scripts/bench/build_llamacpp.sh, ten minutes and more)
#
# One JSON line to a figure on standard output: see scripts/bench/pairs.py.
set -euo pipefail

# shellcheck source=scripts/lib/bench.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/bench.sh"

read_options --model=model --models=models --runs=whole:3 --threads=whole:3 \
    '--isa=scalar|avx2|avx512|amx' 'WORD=decode-[0-9]+|(prefill|batch)-[1-9][0-9]*' -- "$@"
passed_on runs threads isa

cd "$TALLY_ROOT"
need_commands python3=python3
need_models
need_peer llama-bench
FIGURE=$(engine_bench figure)
for model in "${models[@]}"; do
    python3 "$TALLY_ROOT/scripts/bench/pairs.py" --figure "$FIGURE" --peer "$PEER" \
        --model "$model" "${passed[@]}" "${words[@]}"
done
