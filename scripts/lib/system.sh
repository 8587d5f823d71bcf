# shellcheck shell=bash
# Shared by the scripts that run everything: system packages, the Rust toolchain, a Python
# environment. Sourced after lib/tools.sh, never run. It installs only what is missing.

# Ends the script unless cargo is there; a toolchain is the user's to choose.
need_cargo() {
    if ! command -v cargo >/dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then
        PATH="$HOME/.cargo/bin:$PATH"
    fi
    command -v cargo >/dev/null || die "the Rust toolchain is missing; install it with:
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"
}

# Makes sure that the named commands exist: need_commands COMMAND=PACKAGE …
need_commands() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -eq 0 ] || install_packages "${missing[@]}"
}

# Installs Debian packages as root, or dies with the command that would.
install_packages() {
    if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
        die "missing packages; install them: sudo apt-get install -y $*"
    fi
    say "installing $* with apt-get"
    {
        apt-get update
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
    } >&2 || die "apt-get could not install $*"
}

# Prints the path of a Python that has the pinned packages of tools/requirements.txt, in a virtual
# environment of the project's own.
project_python() {
    need_commands python3=python3
    local home="$TALLY_ROOT/.venv" pins="$TALLY_TOOLS/requirements.txt"
    (
        if command -v flock >/dev/null; then flock 9; fi
        if ! cmp -s "$pins" "$home/.tally-pins"; then
            say "installing the pinned Python packages into .venv"
            # Debian keeps what a virtual environment needs in a package of its own.
            python3 -c 'import venv, ensurepip' 2>/dev/null || install_packages python3-venv
            rm -rf "$home"
            python3 -m venv "$home" >&2 || exit 1
            "$home/bin/pip" install --quiet --disable-pip-version-check -r "$pins" >&2 || exit 1
            cp "$pins" "$home/.tally-pins"
        fi
    ) 9<"$pins" || die "the Python packages of $pins could not be installed"
    printf '%s\n' "$home/bin/python"
}

# Prints a TCP port of the loopback interface that was free a moment ago.
free_port() {
    python3 -c 'import socket
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    print(s.getsockname()[1])'
}
