#!/usr/bin/env bash
# Our node beside llama-server on the same file, threads and machine, under the same load, in turn.
#
#   scripts/bench/server.sh [--model FILE] [--runs N] [--threads T] [--clients C] [--requests R]
#
#   --model FILE  a GGUF file both can read (default: the pinned SmolLM2-135M-Instruct Q4_1)
#   --runs N      of each, interleaved (default: 5)
#   --threads T   (default: 2)
#   --clients C   at once, each with a place of its own in both servers (default: 8)
#   --requests R  to a run, 64 tokens each (default: 32)
#
#   PEER=dir      folder with llama-server; built there where it is missing
#                 (scripts/bench/build_llamacpp.sh, ten minutes and more)
#   TALLY=file    the node's program; by default the release build, as hosts run it: the request
#                 half is optimised in no other
#
# One JSON line to a figure on standard output: see scripts/bench/servers.py.
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
    --runs | --threads | --clients | --requests)
        [[ "${2:-}" =~ ^[1-9][0-9]{0,2}$ ]] || die "$1 wants a whole number from 1"
        rest+=("$1" "$2")
        shift
        ;;
    *) die "unknown option: $1 (--help lists them)" ;;
    esac
    shift
done

cd "$TALLY_ROOT"
need_commands python3=python3
[ -n "$model" ] || model=$("$TALLY_ROOT/scripts/fetch-model.sh" | tail -n 1)
PEER=${PEER:-$TALLY_ROOT/target/llamacpp/build/bin}
if [ ! -x "$PEER/llama-server" ]; then
    say "building llama.cpp, the peer"
    need_commands cc=build-essential
    mkdir -p "$TALLY_ROOT/target/llamacpp"
    DEST=$TALLY_ROOT/target/llamacpp "$TALLY_ROOT/scripts/bench/build_llamacpp.sh" >&2
fi
if [ -z "${TALLY:-}" ]; then
    need_cargo
    say "building the node"
    cargo build --quiet --release --bin tally
    TALLY=${CARGO_TARGET_DIR:-$TALLY_ROOT/target}/release/tally
fi
[ -x "$TALLY" ] || die "no program: $TALLY"
exec python3 "$TALLY_ROOT/scripts/bench/servers.py" --ours "$TALLY" --peer "$PEER" \
    --model "$model" "${rest[@]}"
