#!/usr/bin/env bash
# What a change must pass before it is pushed, apart from the tests: format, lints, documents,
# dependencies, house rules, shell. Changes nothing.
#
#   scripts/check.sh
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/tools.sh"
# shellcheck source=scripts/lib/system.sh
source "$TALLY_ROOT/scripts/lib/system.sh"
[ $# -eq 0 ] || die "no options, found: $*"

step() { say "== $*"; }

cd "$TALLY_ROOT"
need_cargo

step "format"
cargo fmt --all -- --check

step "house rules (tests/tidy)"
# Built apart from the workspace: it needs the standard library only, and is there in seconds.
tidy=$(mktemp -d)
trap 'rm -rf "$tidy"' EXIT
CARGO_MANIFEST_DIR=$TALLY_ROOT rustc --edition 2024 --test -o "$tidy/tidy" tests/tidy/main.rs
"$tidy/tidy" --quiet

step "dependencies"
if command -v cargo-deny >/dev/null; then
    cargo deny --locked check bans licenses sources
    say "checked by cargo-deny"
else
    need_commands python3=python3
    python3 scripts/check-deps.py
    say "checked by scripts/check-deps.py, because cargo-deny is not installed"
fi

step "shell"
./scripts/lint-shell.sh

step "lints"
cargo clippy --workspace --all-targets --features test-support -- -D warnings

step "documents"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

step "all clean"
