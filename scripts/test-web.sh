#!/usr/bin/env bash
# Tests web/, the second verifier of claims: its own tests, then random claims against the node's
# code, both ways, mutated blobs among them. Ends with one line of JSON.
#
#   scripts/test-web.sh [--claims N] [--mutants N] [--seed S]     1000, 3 a blob, 1
#
# The full form is --claims 10000.
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/tools.sh"
# shellcheck source=scripts/lib/system.sh
source "$TALLY_ROOT/scripts/lib/system.sh"

claims=1000 mutants=3 seed=1
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] && [[ $2 =~ ^[0-9]+$ ]] || die "$1 wants a number"
    case "$1" in
    --claims) claims=$2 ;;
    --mutants) mutants=$2 ;;
    --seed) seed=$2 ;;
    *) die "unknown option: $1" ;;
    esac
    shift 2
done

cd "$TALLY_ROOT"
need_cargo
need_pins "$TALLY_ROOT/web"
(cd web && npm run --silent build)
(cd web && npm run --silent test:built) >&2

# The same packages and features as the tests have, so that nothing is compiled a second time.
cargo build --quiet --workspace --features test-support --example claims
node_code="${CARGO_TARGET_DIR:-target}/debug/examples/claims"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$node_code" make "$claims" "$seed" |
    node web/dist/node/lines.js "$seed" "$mutants" "$work/blobs" "$work/here" >"$work/summary" ||
    die "claims of the node's code are seen otherwise here; seed $seed"
"$node_code" judge <"$work/blobs" >"$work/there"
cmp "$work/here" "$work/there" || {
    line=$(cmp "$work/here" "$work/there" | sed 's/.*line //' || true)
    die "blob $line of seed $seed is judged otherwise there: $(sed -n "${line}p" "$work/there"),
    here: $(sed -n "${line}p" "$work/here"); the blob: $(sed -n "${line}p" "$work/blobs")"
}
cat "$work/summary"
