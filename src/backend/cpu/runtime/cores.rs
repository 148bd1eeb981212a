//! How many threads compute by default.

use std::collections::BTreeSet;
use std::fs;

/// Physical cores that this process may use, within the limits of its affinity and its control group: a second thread of a core
/// adds nothing to bandwidth or to its vector units.
pub(crate) fn default_threads() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let siblings =
        |cpu| fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")).ok();
    match physical_cores(&status, siblings) {
        0 => allowed,
        cores => allowed.min(cores),
    }
}

/// Cores of the CPUs that `/proc/self/status` allows; `siblings` lists the CPUs of a CPU's core. 0 if that is not known.
fn physical_cores(status: &str, siblings: impl Fn(usize) -> Option<String>) -> usize {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or("");
    cpus(list.trim()).into_iter().filter_map(siblings).collect::<BTreeSet<String>>().len()
}

/// The CPUs of a list like `0-3,8`.
fn cpus(list: &str) -> Vec<usize> {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.trim().parse::<usize>().ok()?..=last.trim().parse::<usize>().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight CPUs, of which i and i + 4 share a core.
    fn siblings(cpu: usize) -> Option<String> {
        (cpu < 8).then(|| format!("{},{}\n", cpu % 4, cpu % 4 + 4))
    }

    #[test]
    fn only_the_cores_of_allowed_cpus_count() {
        let cores = |list: &str| physical_cores(&format!("Name:\tx\nCpus_allowed_list:\t{list}\nMems:\t0\n"), siblings);
        assert_eq!(cores("0-7"), 4);
        assert_eq!(cores("0,4"), 1);
        assert_eq!(cores("1-2,5"), 2);
        assert_eq!(cores("nonsense"), 0);
        assert_eq!(physical_cores("", siblings), 0);
    }

    #[test]
    fn at_least_one_thread_computes() {
        assert!(default_threads() >= 1);
    }
}
