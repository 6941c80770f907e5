#!/usr/bin/env bash
# From a fresh machine to a running store: installs what is missing, builds, and runs
# `pygmy demo --client`. Arguments are passed on to it (./run.sh --help lists them). The store's
# data is kept in ./pygmy-data.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=setup.sh
source "$root/setup.sh"

need_c_compiler
need_cargo
# In the directory itself, because cargo looks for its settings (.cargo) where it runs.
(cd -- "$root" && cargo build --release --locked -p pygmy --target-dir target)
exec "$root/target/release/pygmy" demo --client "$@"
