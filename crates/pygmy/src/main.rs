//! The one binary. See the library for what it does.

fn main() -> std::process::ExitCode {
    pygmy::main()
}
