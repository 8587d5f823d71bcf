#!/usr/bin/env bash
# The real thing in containers: builds the images, starts chain and both nodes with docker compose,
# deploys the binary over them, and lets test_token_tracking.py compare clients, ledger and chain.
#
#   scripts/test-docker.sh
#
# Exit 0: passed. 1: failed. 75: NOT RUN, because no Docker daemon or no docker compose is here.
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/tools.sh"
# shellcheck source=scripts/lib/system.sh
source "$TALLY_ROOT/scripts/lib/system.sh"
[ $# -eq 0 ] || die "no options, found: $*"

readonly NOT_RUN=75

# Ends without a verdict: nothing was tested.
not_run() {
    echo "NOT RUN: $1"
    exit "$NOT_RUN"
}

command -v docker >/dev/null || not_run "no Docker daemon (docker is not installed)"
docker version >/dev/null 2>&1 || not_run "no Docker daemon"
docker compose version >/dev/null 2>&1 || not_run "no docker compose"
for name in llm-node-prod-1 llm-node-prod-2 llm-node-chain; do
    if docker container inspect "$name" >/dev/null 2>&1; then
        die "there is a container $name already: this test would take its place"
    fi
done
need_commands jq=jq python3=python3
need_tools
PYTHON=$(project_python)

cd "$TALLY_ROOT"
STATE=$(mktemp -d "${TMPDIR:-/tmp}/tally-docker.XXXXXX")
export TALLY_SCRIPT_DEPLOY_DIR=$STATE COMPOSE_PROJECT_NAME=tally-test
TALLY_COMMIT=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
TALLY_BUILD_DATE=$(date -u +%F)
export TALLY_COMMIT TALLY_BUILD_DATE
clean_up() {
    local status=$?
    [ "$status" = 0 ] || docker compose --profile dev logs --tail 50 >&2 || true
    docker compose --profile dev down --volumes --timeout 45 >&2 || true
    rm -rf "$STATE"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# One node's files: its key is one of the development chain, which everybody knows.
write_node() {
    mkdir -p "$STATE/node-$1"
    cat >"$STATE/node-$1.env" <<EOF
TALLY_HOST_PRIVATE_KEY=$(jq -er ".accounts.$2.private_key" "$STATE/chain.json")
TALLY_PUBLIC_URL=http://127.0.0.1:$3
TALLY_SESSION_LEGACY=on
TALLY_SESSION_LEGACY_CAP_TOKENS=100000
TALLY_SETTLEMENT_POLL_MILLISECONDS=500
EOF
}

# docker compose reads every env_file before it does anything.
touch "$STATE/chain.env" "$STATE/node-1.env" "$STATE/node-2.env"

say "building the images"
docker compose --profile dev build >&2
say "starting the chain"
docker compose --profile dev up --detach --wait chain >&2
docker compose exec -T chain cat /chain/devchain.json >"$STATE/chain.json"
cat >"$STATE/chain.env" <<EOF
TALLY_CHAIN_RPC_URLS=http://chain:8545
TALLY_CHAIN_ID=$(jq -er .chain_id "$STATE/chain.json")
TALLY_CHAIN_MARKETPLACE=$(jq -er .addresses.job_marketplace "$STATE/chain.json")
EOF
write_node 1 host 8080
write_node 2 host2 8081

say "starting both nodes"
docker compose up --detach --wait >&2
# The very binary of the image, so that the deployment has something true to bring in.
docker cp llm-node-prod-1:/usr/local/bin/tally "$STATE/tally"
./restart-and-deploy.sh --binary "$STATE/tally" --expect "$TALLY_COMMIT"
./deploy-binary.sh --binary "$STATE/tally" --expect "$TALLY_COMMIT"

for node in host:8080 host2:8081; do
    say "the black box test on port ${node#*:}"
    "$PYTHON" test_token_tracking.py --url "http://127.0.0.1:${node#*:}" \
        --rpc http://127.0.0.1:8545 \
        --marketplace "$(jq -er .addresses.job_marketplace "$STATE/chain.json")" \
        --sessions-command "scripts/open-session.sh --rpc http://127.0.0.1:8545 \
            --marketplace $(jq -er .addresses.job_marketplace "$STATE/chain.json") \
            --host $(jq -er ".accounts.${node%:*}.address" "$STATE/chain.json")"
done
say "passed"
