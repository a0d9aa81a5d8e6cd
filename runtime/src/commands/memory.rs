//! Memory of this process.

/// The largest resident set so far in bytes; `None` where the system does not report it.
pub(crate) fn peak_rss_bytes() -> Option<u64> {
    parse(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// Reads `VmHWM:     1234 kB` out of `/proc/self/status`.
fn parse(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_high_water_mark() {
        let cases = [
            (
                "Name:\tegret\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n",
                Some(2_097_152),
            ),
            ("VmRSS:\t 1 kB\n", None),
            ("VmHWM:\t many kB\n", None),
        ];
        for (status, expected) in cases {
            assert_eq!(parse(status), expected, "{status:?}");
        }
    }
}
