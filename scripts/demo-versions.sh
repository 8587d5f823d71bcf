#!/usr/bin/env bash
# The demo (scripts/demo.sh) on each contract version, paid in native coin and in an ERC-20. Prints
# the JSON line of each run, then one for all; fails where any run fails, after trying the others.
#
#   scripts/demo-versions.sh [VERSION …]     default: v3a v3 v4 v4-late v5 v6 v7
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/tools.sh"

case "${1:-}" in
-h | --help)
    sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "$0"
    exit 0
    ;;
esac
[ $# -gt 0 ] || set -- v3a v3 v4 v4-late v5 v6 v7

STARTED=$(date +%s)
LOG=$(mktemp "${TMPDIR:-/tmp}/tally-demo-versions.XXXXXX")
trap 'rm -f "$LOG" "$LOG.err"' EXIT
runs=0
failed=()
for version in "$@"; do
    for token in native erc20; do
        runs=$((runs + 1))
        say "contract $version, paid in $token"
        status=0
        "$TALLY_ROOT/scripts/demo.sh" --contract "$version" --payment-token "$token" \
            >"$LOG" 2>"$LOG.err" || status=$?
        if [ "$status" != 0 ]; then
            failed+=("\"$version $token\"")
            tail -n 20 "$LOG.err" >&2
        fi
        tail -n 1 "$LOG"
    done
done
ok=true
[ ${#failed[@]} = 0 ] || ok=false
printf '{"ok":%s,"runs":%s,"failed":[%s],"seconds":%s}\n' "$ok" "$runs" \
    "$(IFS=,; echo "${failed[*]-}")" "$(($(date +%s) - STARTED))"
[ "$ok" = true ]
