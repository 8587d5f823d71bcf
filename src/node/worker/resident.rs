//! What the process takes of the machine, and what it may take, as the machine counts it.
//!
//! Never estimates: pool managers place workers by these numbers. Relies on Linux's `/proc`.

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

/// Files that the process may have open at once; `None` where the system does not say, or sets no
/// bound.
pub(super) fn files_max() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    parse_files(&limits)
}

/// The bound that holds now stands before the one up to which it may be raised.
fn parse_files(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
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

    #[test]
    fn the_bound_on_open_files_is_the_one_that_holds_now() {
        let limits = "Limit   Soft Limit  Hard Limit  Units\n\
                      Max open files            1024                 524288               files\n";
        assert_eq!(parse_files(limits), Some(1024));
        assert_eq!(parse_files("Max open files            unlimited  unlimited  files\n"), None);
        assert!(files_max().is_none_or(|max| max > 2));
    }
}
