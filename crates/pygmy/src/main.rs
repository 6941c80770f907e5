//! The one binary. See the library for what it does.

/// A request makes many small and some large objects that live as long as it does, which the
/// system's allocator is slow at: with this one a store of three nodes sells about a quarter more
/// (`docs/decisions/0008-dependencies.md`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    pygmy::main()
}
