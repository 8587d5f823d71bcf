#!/usr/bin/env bash
# Our engine's perplexity beside llama.cpp's: the same file, text and rule (chunks of 512 tokens,
# of each the last 255 predicted).
#
#   scripts/bench/perplexity.sh [--model FILE] [--threads T]
#
#   --model FILE  a GGUF file both can read (default: the pinned SmolLM2-135M-Instruct Q4_1)
#   --threads T   (default: 2); no result depends on it
#
#   PEER=dir      folder with llama-perplexity; built there where it is missing
#
# One JSON line on standard output, as scripts/bench/pairs.py writes them; the peer's figure is the
# lower one of its forms with and without flash attention. Nothing in it is a matter of speed, so
# each runs once.
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/tools.sh"
# shellcheck source=scripts/lib/system.sh
source "$TALLY_ROOT/scripts/lib/system.sh"

model=
threads=2
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
    --threads)
        [[ "${2:-}" =~ ^[1-9][0-9]{0,2}$ ]] || die "$1 wants a whole number from 1"
        threads=$2
        shift
        ;;
    *) die "unknown option: $1 (--help lists them)" ;;
    esac
    shift
done

cd "$TALLY_ROOT"
need_cargo
need_commands cc=build-essential jq=jq python3=python3
[ -n "$model" ] || model=$("$TALLY_ROOT/scripts/fetch-model.sh" | tail -n 1)
PEER=${PEER:-$TALLY_ROOT/target/llamacpp/build/bin}
if [ ! -x "$PEER/llama-perplexity" ]; then
    say "building llama.cpp, the peer"
    mkdir -p "$TALLY_ROOT/target/llamacpp"
    DEST=$TALLY_ROOT/target/llamacpp "$TALLY_ROOT/scripts/bench/build_llamacpp.sh" >&2
fi
say "building the engine"
OURS=$(cargo bench --quiet --profile dev -p tally-engine --bench perplexity --no-run \
    --message-format=json | jq -r 'select(.reason == "compiler-artifact"
        and .target.name == "perplexity") | .executable // empty' | tail -n 1)
[ -x "$OURS" ] || die "the engine's benchmark was not built"

text=crates/engine/tests/fixtures/reference/perplexity.txt
peer() {
    "$PEER/llama-perplexity" -m "$model" -f "$text" -c 512 -t "$threads" -fa "$1" 2>&1 |
        sed -n 's/.*Final estimate: PPL = \([0-9.]*\).*/\1/p'
}
ours=$("$OURS" "$model" "$threads")
peers=$(peer on; peer off)
if [ -z "$ours" ] || [ -z "$peers" ]; then
    die "one of the two gave no figure"
fi
peers=$(tr '\n' ',' <<<"$peers" | sed 's/,*$//')
jq -nc --argjson ours "$ours" --argjson peers "[$peers]" '($peers | min) as $peer
    | {figure: "perplexity-512", ours: $ours, peer: $peer, ratio: (($ours / $peer * 1e5 | round)
       / 1e5), runs: 1, spread: [$ours, $ours, $peer, ($peers | max)]}'
