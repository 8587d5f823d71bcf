#!/usr/bin/env bash
# Tests everything: style and layers, contracts on a real EVM, the node with the real model, the
# scripts, and the whole of it from outside. Installs what it needs. Takes no options.
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/tools.sh"
# shellcheck source=scripts/lib/system.sh
source "$TALLY_ROOT/scripts/lib/system.sh"
[ $# -eq 0 ] || die "no options, found: $*"

STARTED=$SECONDS
step() { say "[$((SECONDS - STARTED)) s] $*"; }

cd "$TALLY_ROOT"
need_cargo
need_commands cc=build-essential git=git curl=curl jq=jq python3=python3 unzip=unzip
need_tools
cargo clippy --version >/dev/null 2>&1 && cargo fmt --version >/dev/null 2>&1 ||
    die "clippy and rustfmt are needed: rustup component add clippy rustfmt"
PYTHON=$(project_python)
export PYTHON

step "model and chain"
TALLY_TEST_MODEL=$(./scripts/fetch-model.sh | tail -n 1)
TALLY_TEST_ANVIL=$(anvil_path)
export TALLY_TEST_MODEL TALLY_TEST_ANVIL

step "format, lints, layers, dependencies, documents, shell"
./scripts/check.sh

step "contracts"
./scripts/test-contracts.sh

step "node and engine; property tests with seed ${PROPTEST_RNG_SEED:-of .cargo/config.toml}"
cargo test --quiet --workspace --features test-support --no-fail-fast

step "the second verifier of claims, in web/"
./scripts/test-web.sh

step "deployment scripts"
"$PYTHON" -m unittest discover -s tests/shell -t tests/shell

step "black box on a running node"
./scripts/test-black-box.sh

step "worker protocol against a worker on the real model"
./scripts/worker-conformance.sh --own

step "the program holds no test adapters"
target="${CARGO_TARGET_DIR:-target}/debug"
grep -aq ScriptedEngine "$target"/deps/it-* || die "the adapters' name is in no test: look again"
if grep -aq ScriptedEngine "$target/tally"; then die "the program was built with test adapters"; fi

step "claims derived again: honest ones and cheats"
./scripts/verify-trials.sh --turns 200 --cheats 20 --seed 1

step "kill -9 on a rough chain"
./scripts/chaos-chain.sh --kills 5 --seed 3

step "demo"
./scripts/demo.sh

step "demo on the newest contract, paid in an ERC-20"
./scripts/demo.sh --contract v7 --payment-token erc20

step "all passed"
