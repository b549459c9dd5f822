//! How much memory this process can have.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that can be had without swapping: what the machine has free, or less where the process's control
/// groups allow less. Linux tells.
pub fn available() -> Option<u64> {
    let proc = Path::new("/proc");
    let groups = groups(proc, Path::new("/sys/fs/cgroup"));
    let free = groups.iter().filter_map(Group::free);
    free.chain(of_machine(proc)).min()
}

fn of_machine(proc: &Path) -> Option<u64> {
    let info = fs::read_to_string(proc.join("meminfo")).ok()?;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}

/// A control group that limits memory.
struct Group {
    folder: PathBuf,
    limit: &'static str,
    usage: &'static str,
    /// Begin the names of what counts with the groups below.
    total: &'static str,
}

impl Group {
    /// Files' pages are given back where memory is short. `None`: without a limit.
    fn free(&self) -> Option<u64> {
        let read = |name: &str| fs::read_to_string(self.folder.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        let (limit, usage) = (number(self.limit)?, number(self.usage)?);
        let stat = read("memory.stat").unwrap_or_default();
        let cached = ["active_file", "inactive_file"].map(|name| {
            let mut lines = stat.lines();
            let value = lines.find_map(|line| {
                let rest = line.strip_prefix(self.total)?.strip_prefix(name)?;
                rest.trim().parse::<u64>().ok()
            });
            value.unwrap_or(0)
        });
        Some(limit.saturating_sub(usage.saturating_sub(cached.iter().sum())))
    }
}

/// Those of this process, from its own up.
fn groups(proc: &Path, mounted: &Path) -> Vec<Group> {
    let listed = fs::read_to_string(proc.join("self/cgroup")).unwrap_or_default();
    let mut groups = Vec::new();
    for line in listed.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (root, limit, usage, total) = match controllers {
            "" => (mounted.into(), "memory.max", "memory.current", ""),
            _ if controllers.split(',').any(|name| name == "memory") => (
                mounted.join("memory"),
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_",
            ),
            _ => continue,
        };
        // In a container its own may be mounted as the root, whatever its path.
        let path = Path::new(path.trim_start_matches('/'));
        for folder in path.ancestors() {
            groups.push(Group {
                folder: root.join(folder),
                limit,
                usage,
                total,
            });
        }
    }
    groups
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_known() {
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
    }

    fn write(folder: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(folder).unwrap();
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
    }

    fn free(proc: &Path, mounted: &Path) -> Option<u64> {
        groups(proc, mounted).iter().filter_map(Group::free).min()
    }

    #[test]
    fn the_tightest_of_the_groups_decides() {
        let dir = tempfile::tempdir().unwrap();
        let (proc, mounted) = (dir.path().join("proc"), dir.path().join("cgroup"));
        write(&proc.join("self"), &[("cgroup", "0::/above/own\n")]);
        assert_eq!(free(&proc, &mounted), None);
        let stat = "anon 100\nfile 999\ninactive_file 30\nactive_file 20\n";
        write(
            &mounted.join("above/own"),
            &[
                ("memory.max", "max\n"),
                ("memory.current", "150\n"),
                ("memory.stat", stat),
            ],
        );
        assert_eq!(free(&proc, &mounted), None);
        write(
            &mounted.join("above"),
            &[
                ("memory.max", "1000\n"),
                ("memory.current", "250\n"),
                ("memory.stat", stat),
            ],
        );
        assert_eq!(free(&proc, &mounted), Some(1000 - (250 - 50)));
        write(&mounted.join("above/own"), &[("memory.max", "400\n")]);
        assert_eq!(free(&proc, &mounted), Some(400 - (150 - 50)));
    }

    #[test]
    fn groups_of_the_first_version_count_too() {
        let dir = tempfile::tempdir().unwrap();
        let (proc, mounted) = (dir.path().join("proc"), dir.path().join("cgroup"));
        let list = "5:cpu,cpuacct:/c/d\n4:memory:/docker/abc\n0::/\n";
        write(&proc.join("self"), &[("cgroup", list)]);
        // The path is the host's; the container sees its own group as the root.
        write(
            &mounted.join("memory"),
            &[
                ("memory.limit_in_bytes", "1000\n"),
                ("memory.usage_in_bytes", "700\n"),
                (
                    "memory.stat",
                    "inactive_file 1\ntotal_inactive_file 200\ntotal_active_file 0\n",
                ),
            ],
        );
        assert_eq!(free(&proc, &mounted), Some(500));
    }
}
