#!/usr/bin/env bash
# Brings a new binary into the running nodes, one after the other, and proves that it runs: SHA-256
# inside and outside, health, VERSION line. The second node is touched only when the first is well.
#
#   --binary PATH    the binary (default: target/release/tally)
#   --expect TEXT    what the VERSION line must hold (default: what `PATH --version` prints)
#   --timeout S      seconds until each node must be healthy (default: 120)
set -euo pipefail

# shellcheck source=scripts/lib/deploy.sh
source "$(dirname "${BASH_SOURCE[0]}")/scripts/lib/deploy.sh"

parse_deploy_options "$0" "$@"
check_deploy_inputs
for container in "${CONTAINERS[@]}"; do
    running=$(docker inspect --format '{{.State.Running}}' "$container") ||
        die "$container: there is no such container: docker compose up -d"
    [ "$running" = true ] || die "$container: is not running: docker compose up -d"
done
for container in "${CONTAINERS[@]}"; do
    deploy_into "$container"
done
say "both nodes run the new binary"
