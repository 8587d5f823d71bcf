#!/usr/bin/env bash
# Stops and starts both nodes of docker-compose.yml, brings a new binary into them, and proves that
# it runs: SHA-256 inside and outside, health, VERSION line. Any failure ends it with status 1 and a
# message; what was not reached yet is left as it was.
#
#   --binary PATH    the binary (default: target/release/tally)
#   --expect TEXT    what the VERSION line must hold (default: what `PATH --version` prints)
#   --timeout S      seconds until each node must be healthy (default: 120)
#
# The containers are made anew from the image: build one to keep the binary for good.
set -euo pipefail

# shellcheck source=scripts/lib/deploy.sh
source "$(dirname "${BASH_SOURCE[0]}")/scripts/lib/deploy.sh"

parse_deploy_options "$0" "$@"
check_deploy_inputs
cd "$TALLY_ROOT"
docker compose version >/dev/null 2>&1 || die "docker compose is missing"

say "stopping ${CONTAINERS[*]}"
docker compose stop "${CONTAINERS[@]}" >&2 || die "docker compose stop failed"
say "starting ${CONTAINERS[*]}"
docker compose up --detach --force-recreate --no-build "${CONTAINERS[@]}" >&2 ||
    die "docker compose up failed"
for container in "${CONTAINERS[@]}"; do
    deploy_into "$container"
done
say "both nodes run the new binary"
