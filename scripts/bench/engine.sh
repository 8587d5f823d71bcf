#!/usr/bin/env bash
# Our engine beside llama.cpp on the same file, threads and machine, in turn.
#
#   scripts/bench/engine.sh [--model FILE] [--runs N] [--threads T] [--isa ISA] [FIGURE ...]
#
#   --model FILE  a GGUF file both can read (default: the pinned SmolLM2-135M-Instruct Q4_1)
#   --runs N      of each, per figure (default: 5)
#   --threads T   (default: 2)
#   --isa ISA     scalar, avx2 or avx512; give PEER a build that is restricted alike
#   FIGURE        decode-DEPTH, prefill-TOKENS or batch-SEQUENCES (default: those of
#                 docs/performance.md)
#
#   PEER=dir      folder with llama-bench and llama-batched-bench; built there where it is missing
#                 (scripts/bench/build_llamacpp.sh, ten minutes and more)
#
# One JSON line to a figure on standard output: see scripts/bench/pairs.py.
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/tools.sh"
# shellcheck source=scripts/lib/system.sh
source "$TALLY_ROOT/scripts/lib/system.sh"

model=
rest=()
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
    --runs | --threads)
        [[ "${2:-}" =~ ^[1-9][0-9]{0,2}$ ]] || die "$1 wants a whole number from 1"
        rest+=("$1" "$2")
        shift
        ;;
    --isa)
        [[ "${2:-}" =~ ^(scalar|avx2|avx512)$ ]] || die "--isa wants scalar, avx2 or avx512"
        rest+=("$1" "$2")
        shift
        ;;
    decode-[0-9]* | prefill-[1-9]* | batch-[1-9]*) rest+=("$1") ;;
    *) die "unknown option: $1 (--help lists them)" ;;
    esac
    shift
done

cd "$TALLY_ROOT"
need_cargo
need_commands cc=build-essential jq=jq python3=python3
[ -n "$model" ] || model=$("$TALLY_ROOT/scripts/fetch-model.sh" | tail -n 1)
PEER=${PEER:-$TALLY_ROOT/target/llamacpp/build/bin}
if [ ! -x "$PEER/llama-bench" ]; then
    say "building llama.cpp, the peer"
    mkdir -p "$TALLY_ROOT/target/llamacpp"
    DEST=$TALLY_ROOT/target/llamacpp "$TALLY_ROOT/scripts/bench/build_llamacpp.sh" >&2
fi
say "building the engine"
FIGURE=$(cargo bench --quiet --profile dev -p tally-engine --bench figure --no-run \
    --message-format=json | jq -r 'select(.reason == "compiler-artifact"
        and .target.name == "figure") | .executable // empty' | tail -n 1)
[ -x "$FIGURE" ] || die "the engine's benchmark was not built"
exec python3 "$TALLY_ROOT/scripts/bench/pairs.py" --figure "$FIGURE" --peer "$PEER" \
    --model "$model" "${rest[@]}"
