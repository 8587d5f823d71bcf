#!/usr/bin/env bash
# Tests the contracts: the committed ABI and bytecode are what the sources compile to, and every
# rule holds on a real anvil at its bounds. Takes no options.
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/tools.sh"

[ $# -eq 0 ] || die "no options, found: $*"
"$TALLY_ROOT/scripts/compile-contracts.sh" --check
cd "$TALLY_ROOT/contracts/test"
exec node --test ./*.test.js
