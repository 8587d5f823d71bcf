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

# shellcheck source=scripts/lib/bench.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/bench.sh"

read_options --model=model --runs=whole:3 --threads=whole:3 --clients=whole:3 --requests=whole:3 \
    -- "$@"
passed_on runs threads clients requests

cd "$TALLY_ROOT"
need_commands python3=python3
need_models
need_peer llama-server
if [ -z "${TALLY:-}" ]; then
    need_cargo
    say "building the node"
    cargo build --quiet --release --bin tally
    TALLY=${CARGO_TARGET_DIR:-$TALLY_ROOT/target}/release/tally
fi
[ -x "$TALLY" ] || die "no program: $TALLY"
exec python3 "$TALLY_ROOT/scripts/bench/servers.py" --ours "$TALLY" --peer "$PEER" \
    --model "${models[-1]}" "${passed[@]}"
