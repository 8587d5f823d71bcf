//! What the process takes of the machine's memory, as the machine counts it.
//!
//! Never estimates: pool managers place workers by this number. Relies on Linux's `/proc`.

/// Bytes of memory that are this process's now; `None` where the system does not say.
///
/// The KV cache counts as far as it was touched, so a fresh worker's is yet to come.
pub(super) fn bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    parse(&status)
}

fn parse(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resident_set_is_read_in_bytes() {
        let status = "VmHWM:\t  9 kB\nVmRSS:\t  204800 kB\nRssAnon:\t 1 kB\n";
        assert_eq!(parse(status), Some(209_715_200));
        assert_eq!(parse("VmRSS: many\n"), None);
        assert!(bytes().unwrap() > 1 << 20);
    }
}
