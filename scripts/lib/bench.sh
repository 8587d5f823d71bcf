# shellcheck shell=bash
# Shared by the benchmarks beside a peer (scripts/bench): their options, the model files, the peer's
# and our own programs. Sourced, never run. Standard output belongs to the caller's figures.

# shellcheck source=scripts/lib/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/tools.sh"
# shellcheck source=scripts/lib/system.sh
source "$TALLY_ROOT/scripts/lib/system.sh"

# What read_options found: values by option name without its dashes, model files in the order in
# which they are to be measured, and words that are no options.
declare -A given=()
models=()
words=()

# Reads a script's options: read_options --NAME=KIND … [WORD=PATTERN] -- "$@"
#
# KIND is `whole:DIGITS` (a whole number from 1 of so many digits at most), `model` (a file; may be
# given again), `models` (a folder whose GGUF files are all measured), `file`, or the words that may
# be chosen, divided by |. Words that are no options match the regular expression PATTERN as a
# whole. --help shows the script's own head. Everything else ends the script.
read_options() {
    local -A kinds=()
    local pattern='' kind
    while [ "$1" != -- ]; do
        case "$1" in
        WORD=*) pattern=${1#WORD=} ;;
        *) kinds[${1%%=*}]=${1#*=} ;;
        esac
        shift
    done
    shift
    while [ $# -gt 0 ]; do
        kind=${kinds[$1]:-}
        case "$1" in
        -h | --help)
            print_head
            exit 0
            ;;
        *)
            if [ -n "$kind" ]; then
                take_option "$kind" "$1" "${2:-}"
                shift
            elif [ -n "$pattern" ] && [[ $1 =~ ^($pattern)$ ]]; then
                words+=("$1")
            else
                die "unknown option: $1 (--help lists them)"
            fi
            ;;
        esac
        shift
    done
}

# Prints the comment at the head of the script that runs.
print_head() { sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "$0"; }

# Keeps one option's value, checked: take_option KIND NAME VALUE
take_option() {
    local kind=$1 name=$2 value=$3 more
    case "$kind" in
    whole:*)
        more=$((${kind#whole:} - 1))
        [[ $value =~ ^[1-9][0-9]{0,$more}$ ]] || die "$name wants a whole number from 1"
        ;;
    model | file)
        [ -f "$value" ] || die "$name wants a file"
        value=$(realpath "$value")
        ;;
    models)
        [ -d "$value" ] || die "$name wants a folder with GGUF files"
        mapfile -t -O "${#models[@]}" models < <(find "$(realpath "$value")" -maxdepth 1 \
            -name '*.gguf' | sort)
        [ ${#models[@]} -gt 0 ] || die "$name wants a folder with GGUF files"
        ;;
    *) [[ $value =~ ^($kind)$ ]] || die "$name wants one of ${kind//|/, }" ;;
    esac
    if [ "$kind" = model ]; then models+=("$value"); fi
    given[${name#--}]=$value
}

# The given options of these names as a program takes them: passed_on NAME … fills `passed`.
passed_on() {
    passed=()
    local name
    for name in "$@"; do
        if [ -n "${given[$name]:-}" ]; then passed+=("--$name" "${given[$name]}"); fi
    done
}

# Makes `models` the pinned test model where no other was given.
need_models() {
    if [ ${#models[@]} = 0 ]; then
        models=("$("$TALLY_ROOT/scripts/fetch-model.sh" | tail -n 1)")
    fi
}

# Sets PEER to a folder with this program of llama.cpp, built where it is missing: need_peer PROGRAM
need_peer() {
    PEER=${PEER:-$TALLY_ROOT/target/llamacpp/build/bin}
    if [ ! -x "$PEER/$1" ]; then
        say "building llama.cpp, the peer"
        need_commands cc=build-essential
        mkdir -p "$TALLY_ROOT/target/llamacpp"
        DEST=$TALLY_ROOT/target/llamacpp "$TALLY_ROOT/scripts/bench/build_llamacpp.sh" >&2
    fi
    [ -x "$PEER/$1" ] || die "no $1 in $PEER"
}

# Builds one of crates/engine/benches and prints its path: engine_bench NAME
engine_bench() {
    need_cargo
    need_commands cc=build-essential jq=jq
    say "building the engine"
    local path
    path=$(cargo bench --quiet --profile dev -p tally-engine --bench "$1" --no-run \
        --message-format=json | jq -r --arg name "$1" 'select(.reason == "compiler-artifact"
            and .target.name == $name) | .executable // empty' | tail -n 1)
    [ -x "$path" ] || die "the engine's benchmark was not built"
    printf '%s\n' "$path"
}
