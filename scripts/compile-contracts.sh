#!/usr/bin/env bash
# Compiles contracts/src with the pinned solc into contracts/abi and contracts/bytecode.
#
#   scripts/compile-contracts.sh           writes the files
#   scripts/compile-contracts.sh --check   fails where the committed files differ
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/tools.sh"

case "${1:-}" in
'' | --check) ;;
-h | --help)
    sed -n '2,5s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
    ;;
*) die "unknown option: $1 (--check is the only one)" ;;
esac
[ $# -le 1 ] || die "one option at most, found: $*"

need_tools
exec node "$TALLY_ROOT/contracts/compile.js" "$@"
