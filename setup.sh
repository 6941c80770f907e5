# shellcheck shell=bash
# What run.sh and test.sh share: a fresh machine gets a C compiler, which SQLite is built with,
# Rust if its packages have one that is new enough, and for the tests what cuts a network.

# Cargo.toml says the same.
readonly MIN_RUST=1.95

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
fail() {
    say "$@"
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# Whether version $1 is at least version $2.
at_least() { [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

# Installs packages of Debian or Ubuntu, or says how.
install_packages() {
    local by_hand="apt-get update && apt-get install -y $*" as_root=()
    have apt-get || fail "please install: $*; then run this again"
    if [[ $EUID -ne 0 ]]; then
        have sudo || fail "$* must be installed; as root, run: $by_hand; then run this again"
        as_root=(sudo)
    fi
    say "installing $*"
    if ! "${as_root[@]}" apt-get -qq update ||
        ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y "$@" >/dev/null; then
        fail "$* could not be installed; as root, run: $by_hand; then run this again"
    fi
}

need_c_compiler() {
    if ! have cc; then install_packages gcc libc6-dev; fi
}

# What the tests on a network that is cut use. Root only; without it they are skipped and say so.
need_network_tools() {
    PATH=$PATH:/usr/sbin:/sbin
    if { have ip && have nft; } || [[ $EUID -ne 0 ]]; then return; fi
    (install_packages iproute2 nftables) || say "the tests on a network that is cut are skipped"
}

# The version of the system's own cargo package, if there is one.
packaged_cargo() {
    have apt-cache || return 0
    apt-cache policy cargo 2>/dev/null | sed -n 's/^ *Candidate: *\([0-9.]*\).*/\1/p'
}

need_cargo() {
    local cargo_bin=${CARGO_HOME:-$HOME/.cargo}/bin packaged version
    # Just installed, perhaps, and not yet in the PATH of this shell.
    if ! have cargo && [[ -x $cargo_bin/cargo ]]; then PATH=$cargo_bin:$PATH; fi
    if ! have cargo; then
        packaged=$(packaged_cargo)
        if [[ -z $packaged ]] || ! at_least "$packaged" "$MIN_RUST"; then
            fail "Rust $MIN_RUST or newer is missing; install it with rustup, then run this again"
        fi
        install_packages cargo
    fi
    version=$(cargo --version | cut -d ' ' -f 2)
    if ! at_least "$version" "$MIN_RUST"; then
        fail "Rust $version is too old, $MIN_RUST is needed; run: rustup update stable"
    fi
}
