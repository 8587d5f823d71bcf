#!/usr/bin/env bash
# Opens one more session on a running chain and prints {"job_id":N}.
#
#   --rpc URL            the chain
#   --marketplace 0x…    its JobMarketplace
#   --host 0x…           the host that will serve
#   --key 0x…            the depositor's private key (default: devchain.sh's accounts.depositor)
#   --token 0x…          pays in this ERC-20, approved before (default: native coin)
#   --price WEI          per token (default: 100000000000000)
#   --deposit WEI        (default: 1000000000000000000)
#   --proof-interval N   tokens, at least 100 (default: 100)
#   --max-duration S     seconds (default: 86400)
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/tools.sh"

for option in "$@"; do
    if [ "$option" = --help ] || [ "$option" = -h ]; then
        sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
        exit 0
    fi
done

need_tools
exec node "$TALLY_ROOT/contracts/deploy.js" open-session "$@"
