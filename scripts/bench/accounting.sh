#!/usr/bin/env bash
# Speed of accounting: tracker, durable ledger, restart, memory of open sessions. Progress goes to
# standard error; the last line of standard output is one JSON object.
#
#   scripts/bench/accounting.sh [ENTRIES_MAX]     default 1000000; 10000000 takes minutes
#
#   TALLY_BENCH_DIR=/var/tmp   where the ledgers are written: a real disk, never a memory one
#
# Dependencies are those of the tests' profile, which are optimised; only our own crate is built
# again, with optimisation, so that a measurement does not cost a release build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
package=profile.dev.package.tally
exec cargo bench --profile dev --features test-support --bench accounting \
    --config "$package.opt-level=3" \
    --config "$package.debug-assertions=false" \
    --config "$package.overflow-checks=false" \
    -- "${1:-1000000}"
