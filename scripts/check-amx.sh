#!/usr/bin/env bash
# Runs the AMX functions of the engine's products in an emulated processor that has AMX, on random
# numbers, and compares bit for bit. Works without AMX. Ends with one line of JSON; exit code 1 on
# any difference.
#
#   scripts/check-amx.sh [--cases N] [--seed S] [--workspace]
#
#   --cases N     how many blocks of sixteen rows and sixteen outputs (1200)
#   --seed S      a number; default: a new one, printed
#   --workspace   take the engine's test program as scripts/test.sh builds it, not by itself
#
# The emulator is Bochs as Debian 13 has it, from the archive that this machine's apt knows, with
# the libraries it wants; 55 MB, unpacked under target/, nothing is installed. Its cousins that are
# easier to get have no AMX (Debian 12's Bochs, PyPI's bochscpu-python). Bochs 3 multiplies signed
# bytes as if they were unsigned: that the functions use the signed instruction is read off their
# machine code instead, and the JSON says so.
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/tools.sh"
# shellcheck source=scripts/lib/system.sh
source "$TALLY_ROOT/scripts/lib/system.sh"

readonly DEBIAN=trixie

# Unpacks Bochs and its libraries into folder $1, unless they are there.
fetch_bochs() {
    local home=$1 archive package
    [ ! -f "$home/complete" ] || return 0
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
        die "Bochs comes from Debian's archive: this needs apt-get and dpkg-deb"
    archive=$(debian_archive)
    if [ -z "$archive" ] && [ "$(id -u)" = 0 ]; then
        apt-get update >&2
        archive=$(debian_archive)
    fi
    [ -n "$archive" ] || die "apt knows no archive of Debian here; see: apt-get indextargets"
    say "fetching Bochs of Debian $DEBIAN into $home"
    rm -rf "$home"
    mkdir -p "$home"/{lists,cache/archives,sources,root}
    : >"$home/status"
    cat >"$home/sources/debian.sources" <<END
Types: deb
URIs: $archive
Suites: $DEBIAN
Components: main
Architectures: amd64
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
    apt_apart "$home" update
    apt_apart "$home" install --download-only --no-install-recommends bochs bochs-term
    for package in "$home"/cache/archives/*.deb; do
        # Most have one of the two or none, of which tar complains.
        dpkg-deb --fsys-tarfile "$package" | tar -x -C "$home/root" --wildcards \
            './usr/bin/bochs-bin' './usr/lib/x86_64-linux-gnu/*' 2>/dev/null || true
    done
    rm -rf "$home/cache" "$home/lists"
    local libraries="$home/root/usr/lib/x86_64-linux-gnu" models
    models=$(LTDL_LIBRARY_PATH="$libraries/bochs/plugins" "$libraries/ld-linux-x86-64.so.2" \
        --library-path "$libraries" "$home/root/usr/bin/bochs-bin" --help cpu 2>&1) || true
    grep -qx sapphire_rapids <<<"$models" || die "the fetched Bochs does not run: $models"
    touch "$home/complete"
}

# Prints the address of the archive of Debian that apt is set up with here, if any.
debian_archive() {
    # The names in brackets are apt's.
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' |
        awk -F'|' '$1 == "Debian" && $2 == "Debian" && !found++ { print $3 }'
}

# apt-get with a state of its own in folder $1: what this machine has installed is not looked at
# and not changed.
apt_apart() {
    local home=$1
    shift
    apt-get -qq -y -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$home/sources" \
        -o "Dir::State::lists=$home/lists" -o "Dir::State::status=$home/status" \
        -o "Dir::State::extended_states=$home/extended" -o "Dir::Cache=$home/cache" \
        -o APT::Architecture=amd64 -o Debug::NoLocking=true -o APT::Sandbox::User="$(id -un)" \
        -o Acquire::Languages=none -o Acquire::Retries=3 \
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false "$@" >&2 ||
        die "apt-get could not fetch Bochs of Debian $DEBIAN"
}

# Builds the engine's unit test program with the options given and prints its path.
test_program() {
    cargo test "$@" --lib --no-run --message-format=json | python3 -c '
import json, sys
for line in sys.stdin:
    built = json.loads(line)
    if built.get("executable") and built["target"]["name"] == "tally_engine":
        print(built["executable"])'
}

options=() build=(-p tally-engine)
while [ $# -gt 0 ]; do
    case $1 in
    --cases | --seed)
        [[ "${2:-}" =~ ^[0-9]+$ ]] || die "$1 wants a number"
        options+=("$1" "$2")
        shift 2
        ;;
    --workspace)
        build=(--workspace --features test-support)
        shift
        ;;
    *) die "unknown option: $1" ;;
    esac
done

cd "$TALLY_ROOT"
[ "$(uname -sm)" = "Linux x86_64" ] || die "the emulator is a program for Linux on x86-64"
need_cargo
need_commands python3=python3 as=binutils objcopy=binutils objdump=binutils
target="${CARGO_TARGET_DIR:-$TALLY_ROOT/target}"
mkdir -p "$target"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
as -o "$work/guest.o" scripts/amx/guest.s
objcopy -O binary -j .rom "$work/guest.o" "$work/guest.bin"
fetch_bochs "$target/amx-emulator"
program=$(test_program "${build[@]}")
[ -n "$program" ] || die "cargo told of no test program of tally-engine"
python3 scripts/amx/emulated.py "$program" --emulator "$target/amx-emulator/root" \
    --guest "$work/guest.bin" ${options[@]+"${options[@]}"}
