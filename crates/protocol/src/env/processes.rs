use std::io;

use super::BoxFuture;

/// Running other programs.
pub trait Processes: Send + Sync {
    /// Runs the program `command[0]` with the other arguments, without input, until it ends.
    /// Without a limit of its own; dropping the future kills the program, but not what it started.
    fn run<'a>(&'a self, command: &'a [String]) -> BoxFuture<'a, io::Result<Ended>>;
}

/// The end of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Whether it exited with 0.
    pub success: bool,
    /// `exit status: 1`, or the signal.
    pub how: String,
    /// What it wrote to standard output and standard error, 4 KiB of each at most.
    pub output: String,
}

/// An environment without other programs.
pub struct NoProcesses;

impl Processes for NoProcesses {
    fn run<'a>(&'a self, _: &'a [String]) -> BoxFuture<'a, io::Result<Ended>> {
        Box::pin(async { Err(io::Error::other("there are no other programs here")) })
    }
}
