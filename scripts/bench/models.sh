#!/usr/bin/env bash
# Makes the other files that engine.sh is run on: the test model in other formats, and a model of
# TinyLlama's shape (1.1 billion random weights) in the same.
#
#   scripts/bench/models.sh DIR [FORMAT ...]      (default: Q8_0 Q4_0 Q4_K_M)
#
#   PEER=dir      folder with llama-quantize (scripts/bench/build_llamacpp.sh builds it)
#
# Wants 6 GB in DIR while it works, 3 GB afterwards. Prints the files' names.
set -euo pipefail

# shellcheck source=scripts/lib/bench.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/bench.sh"

case "${1:-}" in
'' | -h | --help)
    print_head
    exit 0
    ;;
-*) die "unknown option: $1 (--help lists them)" ;;
esac
mkdir -p "$1"
dir=$(realpath "$1")
shift
[ $# -gt 0 ] || set -- Q8_0 Q4_0 Q4_K_M

need_commands python3=python3
quantize=${PEER:-$TALLY_ROOT/target/llamacpp/build/bin}/llama-quantize
[ -x "$quantize" ] || die "no llama-quantize in PEER: scripts/bench/build_llamacpp.sh builds it"
model=$("$TALLY_ROOT/scripts/fetch-model.sh" | tail -n 1)
[ -d "$dir/venv" ] || python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check gguf==0.19.0 numpy >&2

# as_formats SOURCE NAME FORMAT ...
as_formats() {
    local source=$1 name=$2 format
    shift 2
    for format in "$@"; do
        "$quantize" --allow-requantize "$source" "$dir/$name.$format.gguf" "$format" \
            >"$dir/quantize.log" 2>&1 || die "llama-quantize failed: $dir/quantize.log"
        printf '%s\n' "$dir/$name.$format.gguf"
    done
}

as_formats "$model" smollm2 "$@"
say "making 1.1 billion weights"
"$dir/venv/bin/python" "$TALLY_ROOT/scripts/bench/random_model.py" \
    "$model" "$dir/random-f16.gguf" >&2
as_formats "$dir/random-f16.gguf" random-1b "$@"
rm "$dir/random-f16.gguf"
