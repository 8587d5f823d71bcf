# shellcheck shell=bash
# Shared by restart-and-deploy.sh and deploy-binary.sh: brings a binary into running containers and
# proves that it is the one that runs. Sourced, never run. Every function dies with a message that
# names the container and what was wanted and found.

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/tools.sh"

# shellcheck disable=SC2034 # read by the scripts that source this file
readonly CONTAINERS=(llm-node-prod-1 llm-node-prod-2)
readonly INSIDE=/usr/local/bin/tally
readonly POLL_SECONDS=1

BINARY=${CARGO_TARGET_DIR:-$TALLY_ROOT/target}/release/tally
EXPECTED=
TIMEOUT_SECONDS=120
BINARY_SHA256=

# Reads the options both scripts share; $1 is the script, for --help.
parse_deploy_options() {
    local script=$1
    shift
    while [ $# -gt 0 ]; do
        case "$1" in
        -h | --help)
            sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "$script"
            exit 0
            ;;
        --binary | --expect | --timeout)
            [ $# -ge 2 ] || die "$1 wants a value"
            case "$1" in
            --binary) BINARY=$2 ;;
            --expect) EXPECTED=$2 ;;
            *) TIMEOUT_SECONDS=$2 ;;
            esac
            shift
            ;;
        *) die "unknown option: $1 (--help lists them)" ;;
        esac
        shift
    done
    [[ "$TIMEOUT_SECONDS" =~ ^[1-9][0-9]*$ ]] ||
        die "--timeout wants seconds, found $TIMEOUT_SECONDS"
}

# Checks what must be there before anything is stopped.
check_deploy_inputs() {
    command -v docker >/dev/null || die "docker is missing"
    docker version >/dev/null 2>&1 || die "the Docker daemon does not answer: docker version"
    [ -s "$BINARY" ] || die "no binary at $BINARY: cargo build --release, or name it with --binary"
    BINARY_SHA256=$(sha256sum "$BINARY" | cut -d ' ' -f 1)
    if [ -z "$EXPECTED" ]; then
        EXPECTED=$("$BINARY" --version 2>/dev/null | head -n 1) ||
            die "$BINARY --version failed here: name what its VERSION line holds with --expect"
    fi
    [ -n "$EXPECTED" ] || die "$BINARY --version printed nothing: name it with --expect"
    say "deploying $BINARY ($EXPECTED, SHA-256 ${BINARY_SHA256:0:16}…)"
}

# Copies the binary into container $1 and compares the hashes outside and inside.
copy_binary() {
    local container=$1 inside
    docker cp "$BINARY" "$container:$INSIDE" >&2 || die "$container: docker cp failed"
    inside=$(docker exec "$container" sha256sum "$INSIDE" | cut -d ' ' -f 1) ||
        die "$container: cannot read the hash of $INSIDE inside"
    [ "$inside" = "$BINARY_SHA256" ] ||
        die "$container: $INSIDE has SHA-256 ${inside:-none}, wanted $BINARY_SHA256"
}

# Restarts container $1, so that it runs what was copied.
restart_container() {
    docker restart "$1" >/dev/null || die "$1: docker restart failed"
}

# Waits until container $1 is healthy by its own check.
wait_for_health() {
    local container=$1 state='' waited=0
    local format='{{.State.Status}} {{.State.Health.Status}}'
    while [ "$waited" -lt "$TIMEOUT_SECONDS" ]; do
        state=$(docker inspect --format "$format" "$container") ||
            die "$container: docker inspect failed"
        case "$state" in
        'running healthy') return ;;
        'running starting') ;;
        *) die "$container: is $state, wanted running healthy: docker logs $container" ;;
        esac
        sleep "$POLL_SECONDS"
        waited=$((waited + POLL_SECONDS))
    done
    die "$container: still $state after $TIMEOUT_SECONDS s: docker logs $container"
}

# Checks that the VERSION line since container $1's last start names every word of EXPECTED.
verify_version() {
    local container=$1 since line word
    since=$(docker inspect --format '{{.State.StartedAt}}' "$container") ||
        die "$container: docker inspect failed"
    # All of the log is read before the search ends, else docker would see a closed pipe.
    line=$(docker logs --since "$since" "$container" 2>&1 | sed -n '/VERSION/p' | tail -n 1) ||
        die "$container: docker logs failed"
    [ -n "$line" ] || die "$container: no VERSION line in the log since $since"
    for word in $EXPECTED; do
        word=${word//[(),]/}
        case "$word" in
        '' | tally) ;;
        *)
            [[ "$line" == *"$word"* ]] ||
                die "$container: VERSION line lacks '$word' of '$EXPECTED': $line"
            ;;
        esac
    done
}

# Brings the binary into container $1 and proves it runs.
deploy_into() {
    copy_binary "$1"
    restart_container "$1"
    wait_for_health "$1"
    verify_version "$1"
    say "$1: runs $EXPECTED, healthy"
}
