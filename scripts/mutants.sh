#!/usr/bin/env bash
# Checks the simulation: each deliberate bug of tests/mutants is put into a copy of the tree, and
# the seed recorded for it must find a violation there, and none without the bug.
#
#   mutants.sh [NAME ...]           all bugs, or those whose names are given (01-cumulative)
#   mutants.sh --find [NAME ...]    looks for catching seeds and prints the table's new rows
#
# Works in target/mutants, on what is committed or staged or changed in files that git knows. The
# last line of standard output is JSON: {"ok","mutants","caught"}.
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/tools.sh"
# shellcheck source=scripts/lib/system.sh
source "$TALLY_ROOT/scripts/lib/system.sh"

# Runs that --find tries for each bug.
readonly FIND_RUNS=${FIND_RUNS:-3000}
readonly TABLE="$TALLY_ROOT/tests/mutants/seeds.tsv"
readonly HOME_DIR="$TALLY_ROOT/target/mutants"
readonly TREE="$HOME_DIR/tree"

FIND=
if [ "${1:-}" = --find ]; then
    FIND=yes
    shift
fi
case ${1:-} in -*) die "unknown option $1; there is --find" ;; esac

cd "$TALLY_ROOT"
need_cargo
need_commands cc=build-essential git=git jq=jq
NAMES=("$@")
if [ ${#NAMES[@]} = 0 ]; then
    for patch in tests/mutants/*.patch; do NAMES+=("$(basename "$patch" .patch)"); done
fi

# The copy, and what was built of its dependencies: those are the same for every bug.
fresh_tree() {
    rm -rf "$TREE"
    mkdir -p "$TREE" "$HOME_DIR/target/debug"
    git ls-files -z | while IFS= read -r -d '' file; do
        [ ! -e "$file" ] || printf '%s\0' "$file"
    done | tar --null --files-from=- --create --file=- | tar --extract --file=- --directory="$TREE"
    # Times of their own: what was built with a bug is never taken for what is built now.
    find "$TREE" -name '*.rs' -exec touch {} +
    # A repository of its own, for the patches.
    git -C "$TREE" init --quiet
    local built="${CARGO_TARGET_DIR:-target}/debug" part
    for part in build deps .fingerprint; do
        if [ -d "$built/$part" ] && [ ! -d "$HOME_DIR/target/debug/$part" ]; then
            cp -a --reflink=auto "$built/$part" "$HOME_DIR/target/debug/$part"
        fi
    done
}

# Builds the simulation of the copy; prints the program's path.
build() {
    local built
    built=$(cd "$TREE" && CARGO_TARGET_DIR="$HOME_DIR/target" cargo test --quiet --workspace \
        --features test-support --test sim --no-run --message-format=json) || return 1
    jq -r 'select(.reason == "compiler-artifact" and .target.name == "sim")
        | .executable // empty' <<<"$built" | tail -n 1
}

seed_of() { awk -F '\t' -v name="$1" '$1 == name { print $2 }' "$TABLE"; }

# Whether the run of a seed ends without a violation. What it found goes to standard error.
is_clean() {
    local output
    output=$(RUST_BACKTRACE=0 TALLY_SIM_ONLY="$2" \
        "$1" --exact runs::one_seed_is_clean --nocapture 2>/dev/null) && return 0
    grep '^seed' <<<"$output" | cut -c1-200 >&2 || die "seed $2 gave no result"
    return 1
}

# The first seed that finds a violation with the bug and none without it.
find_seed() {
    local seed
    while read -r seed; do
        if is_clean "$CLEAN" "$seed" 2>/dev/null; then
            printf '%s\n' "$seed"
            return
        fi
    done < <(RUST_BACKTRACE=0 TALLY_SIM_RUNS=$FIND_RUNS \
        "$1" --exact runs::no_seed_breaks_the_sentence --nocapture 2>/dev/null |
        awk '$1 == "seed" { print $2 }')
    printf 'none\n'
}

fresh_tree
say "building without a bug"
CLEAN=$HOME_DIR/clean
program=$(build) || die "the copy does not build"
cp "$program" "$CLEAN"
CAUGHT=0
for name in "${NAMES[@]}"; do
    patch="$TALLY_ROOT/tests/mutants/$name.patch"
    [ -f "$patch" ] || die "no such bug: $name"
    git -C "$TREE" apply "$patch" || die "$name does not apply"
    program=$(build) || die "$name does not build"
    git -C "$TREE" apply --reverse "$patch"
    if [ -n "$FIND" ]; then
        seed=$(find_seed "$program")
        printf '%s\t%s\n' "$name" "$seed"
        [ "$seed" = none ] || CAUGHT=$((CAUGHT + 1))
        continue
    fi
    seed=$(seed_of "$name")
    [ -n "$seed" ] || die "no seed is recorded for $name"
    is_clean "$CLEAN" "$seed" || die "seed $seed of $name fails without the bug"
    if is_clean "$program" "$seed"; then
        say "$name is NOT caught by seed $seed"
    else
        say "$name is caught by seed $seed"
        CAUGHT=$((CAUGHT + 1))
    fi
done
OK=false
[ "$CAUGHT" != ${#NAMES[@]} ] || OK=true
printf '{"ok":%s,"mutants":%s,"caught":%s}\n' "$OK" "${#NAMES[@]}" "$CAUGHT"
[ "$OK" = true ]
