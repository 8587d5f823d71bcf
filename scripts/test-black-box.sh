#!/usr/bin/env bash
# The black-box test against a real node with the real model on a real EVM. Takes no options.
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/tools.sh"
# shellcheck source=scripts/lib/system.sh
source "$TALLY_ROOT/scripts/lib/system.sh"
# shellcheck source=scripts/lib/stack.sh
source "$TALLY_ROOT/scripts/lib/stack.sh"
[ $# -eq 0 ] || die "no options, found: $*"

need_cargo
need_commands cc=build-essential curl=curl jq=jq python3=python3
need_tools
PYTHON=$(project_python)
MODEL=$("$TALLY_ROOT/scripts/fetch-model.sh" | tail -n 1)

STATE=$(mktemp -d "${TMPDIR:-/tmp}/tally-black-box.XXXXXX")
STACK_STATE=$STATE
clean_up() {
    local status=$?
    stack_stop
    if [ "$status" = 0 ]; then rm -rf "$STATE"; else say "logs are in $STATE"; fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Sessions stay open while clients come and go: the test reads the ledger after them.
STACK_GRACE_CLEAN_SECONDS=60
stack_start "$STATE" "$MODEL"
stack_wait
"$PYTHON" "$TALLY_ROOT/test_token_tracking.py" --url "$STACK_URL" \
    --rpc "$(stack_chain .rpc_url)" --marketplace "$(stack_chain .addresses.job_marketplace)" \
    --depositor "$(stack_chain .accounts.depositor.address)" \
    --host "$(stack_chain .accounts.host.address)"
