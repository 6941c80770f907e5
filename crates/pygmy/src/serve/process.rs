//! What the operating system knows of this process.

use std::fs;

use pygmy_protocol::metrics::{Gauge, Metrics};

/// Registers memory and open files of the process, where `/proc` tells of them.
pub(super) fn register(metrics: &Metrics) {
    let help = "Memory of the process that is in RAM";
    let memory = Gauge::new(|| resident_bytes().unwrap_or(0));
    metrics.register("process_resident_memory_bytes", help, memory);
    let files = Gauge::new(|| fs::read_dir("/proc/self/fd").map_or(0, |open| open.count() as u64));
    metrics.register("process_open_fds", "Open files and connections of the process", files);
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}
