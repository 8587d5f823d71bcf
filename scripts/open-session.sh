#!/usr/bin/env bash
# Opens one more session on a running chain and prints {"job_id":N}; with an ERC-20
# {"job_id":N,"token":"0x…"}.
#
#   --rpc URL            the chain
#   --marketplace 0x…    its JobMarketplace
#   --host 0x…           the host that will serve
#   --contract VERSION   v3a, vouchers, v3, v4, v4-late, v5, v6 or v7: refuses another one
#                        (default: what the contract's code says)
#   --key 0x…            the depositor's private key (default: devchain.sh's accounts.depositor)
#   --session KIND       plain or voucher (default: plain): voucher needs the contract vouchers
#   --payment-token KIND native or erc20 (default: native); erc20 mints the deposit of a test token
#                        and approves it first
#   --token 0x…          the ERC-20 (default: the first that the marketplace accepted); without
#                        --payment-token erc20 the deposit has to be there and approved
#   --price N            per token, in the contract's unit: wei, or from v4-late on thousandths of
#                        a wei (default: 100000000000000 wei)
#   --deposit WEI        (default: 1000000000000000000)
#   --proof-interval N   tokens, at least 100 (default: 100)
#   --max-duration S     seconds (default: 86400)
#   --model-id 0x…       v7: the model (default: the first that was registered)
#   --proof-timeout-window S  v7: longest silence, 60…3600 (default: 300)
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
