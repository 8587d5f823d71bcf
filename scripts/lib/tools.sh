# shellcheck shell=bash
# Shared by the shell scripts: where the pinned npm tools are, and how they get there. Sourced,
# never run. It installs only what is missing and never writes to standard output, which belongs to
# the caller's result.

TALLY_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly TALLY_ROOT
readonly TALLY_TOOLS="$TALLY_ROOT/tools"
readonly TALLY_NODE_MAJOR_MIN=18

# Prints a message to standard error, prefixed with the script's name.
say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }

# Prints a message and ends the script with status 1.
die() {
    say "$@"
    exit 1
}

# Makes sure that node (18 or later) and npm are on PATH; installs Debian's as root.
need_node() {
    if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
        if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
            die "node and npm are missing; install them: sudo apt-get install -y nodejs npm"
        fi
        say "installing nodejs and npm with apt-get"
        {
            apt-get update
            DEBIAN_FRONTEND=noninteractive \
                apt-get install -y --no-install-recommends nodejs npm ca-certificates
        } >&2 || die "apt-get could not install nodejs and npm"
    fi
    local major
    major=$(node -p 'process.versions.node.split(".")[0]')
    [ "$major" -ge "$TALLY_NODE_MAJOR_MIN" ] ||
        die "node $TALLY_NODE_MAJOR_MIN or later is needed, found $(node --version); Debian 12 and
    Ubuntu 24.04 have it (sudo apt-get install -y nodejs npm), else https://nodejs.org/en/download"
}

# Makes sure that FOLDER/node_modules holds what its package-lock.json pins: need_pins FOLDER. Two
# callers at once wait for each other, so that neither sees half an install. Install scripts stay
# off: the binaries come as packages of their own.
need_pins() {
    need_node
    local folder=$1 pins
    pins=$(cat "$folder/package.json" "$folder/package-lock.json")
    (
        if command -v flock >/dev/null; then flock 9; fi
        # The lock file as it was at the last complete install: an install that was cut short
        # leaves none and is done again.
        local stamp="$folder/node_modules/.tally-pins"
        if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$pins" ]; then
            say "installing the pinned npm packages into ${folder#"$TALLY_ROOT"/}/node_modules"
            (cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund >&2) || exit 1
            printf '%s\n' "$pins" >"$stamp"
        fi
    ) 9<"$folder/package.json" || die "npm ci in $folder failed"
}

# Makes sure that the pinned npm tools are there.
need_tools() { need_pins "$TALLY_TOOLS"; }

# Prints the path of the anvil binary: TALLY_ANVIL, else the pinned one. The binary itself and not
# npm's wrapper around it, which leaves the chain running when it is killed. Run need_tools first.
anvil_path() {
    if [ -n "${TALLY_ANVIL:-}" ]; then
        [ -x "$TALLY_ANVIL" ] || die "TALLY_ANVIL is no executable: $TALLY_ANVIL"
        printf '%s\n' "$TALLY_ANVIL"
        return
    fi
    local binary
    for binary in "$TALLY_TOOLS"/node_modules/@foundry-rs/anvil-*/bin/anvil; do
        if [ -x "$binary" ]; then
            printf '%s\n' "$binary"
            return
        fi
    done
    die "no anvil binary for this machine under $TALLY_TOOLS/node_modules"
}
