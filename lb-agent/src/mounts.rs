//! Where the BPF and cgroup file systems are mounted.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

const MOUNTS: &str = "/proc/self/mounts";

/// A mounted file system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// The mount point.
    pub point: PathBuf,
    /// The file system type, such as `bpf` or `cgroup2`.
    pub kind: String,
}

/// Returns the mounts that this process sees, in the order of mounting.
pub fn mounts() -> io::Result<Vec<Mount>> {
    // Paths need not be valid UTF-8. The paths of interest here are.
    Ok(parse(&String::from_utf8_lossy(&fs::read(MOUNTS)?)))
}

fn parse(text: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        Some(Mount {
            point: unescape(fields.next()?).into(),
            kind: fields.next()?.to_owned(),
        })
    };
    text.lines().filter_map(mount).collect()
}

/// Undoes the kernel's octal escapes for spaces, tabs, newlines and backslashes.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(field.to_owned(), |field, (escape, character)| {
            field.replace(escape, character)
        })
}

/// Returns the mount that contains a path. The path need not exist.
pub fn mount_of<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    // If several file systems are mounted on one point, the last one is visible.
    mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count())
}

/// Returns the mount point of the cgroup v2 hierarchy. The one under `/sys/fs/cgroup`, where
/// systemd mounts it, takes precedence over others.
pub fn cgroup2(mounts: &[Mount]) -> Option<&Path> {
    let mut points = mounts
        .iter()
        .filter(|mount| mount.kind == "cgroup2")
        .map(|mount| mount.point.as_path());
    let usual = |point: &&Path| point.starts_with("/sys/fs/cgroup");
    points.clone().find(usual).or_else(|| points.next())
}

/// Returns an error message if a cgroup namespace shows only a part of the hierarchy at this mount
/// point. The socket programs do not work then. Returns `None` if the whole hierarchy is visible.
///
/// # Errors
/// If the directory's metadata cannot be read.
pub fn partial_cgroup2(point: &Path) -> io::Result<Option<String>> {
    /// The inode number of a hierarchy's root directory (`cgroup_root`,
    /// <https://github.com/torvalds/linux/blob/v6.18/kernel/cgroup/cgroup.c>).
    const ROOT_INODE: u64 = 1;
    let shown = point.display();
    Ok((fs::metadata(point)?.ino() != ROOT_INODE).then(|| {
        format!(
            "{shown} is a part of the hierarchy only: give the container the host's cgroup namespace or its {shown}"
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_root_of_the_cgroup_hierarchy_has_the_root_inode() {
        let mounts = mounts().unwrap();
        if let Some(root) = cgroup2(&mounts) {
            assert_eq!(partial_cgroup2(root).unwrap(), None);
        }
        let other = tempfile::tempdir().unwrap();
        let why = partial_cgroup2(other.path()).unwrap().unwrap();
        assert!(why.contains(other.path().to_str().unwrap()), "{why}");
        assert!(partial_cgroup2(&other.path().join("none")).is_err());
    }

    const UNIFIED: &str = "\
sysfs /sys sysfs rw,nosuid 0 0
none /run/other cgroup2 rw 0 0
cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0
bpf /sys/fs/bpf bpf rw,mode=700 0 0
tmpfs /mnt/with\\040blank\\134040 tmpfs rw 0 0
";

    const HYBRID: &str = "\
tmpfs /sys/fs/cgroup tmpfs ro 0 0
cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0
";

    #[test]
    fn cgroup2_is_found_in_unified_and_hybrid_layouts() {
        let found = |text| cgroup2(&parse(text)).map(Path::to_owned);
        assert_eq!(found(UNIFIED), Some("/sys/fs/cgroup".into()));
        assert_eq!(found(HYBRID), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(found("none /run/other cgroup2 rw 0 0"), Some("/run/other".into()));
        assert_eq!(found("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0"), None);
    }

    #[test]
    fn a_path_is_in_the_innermost_mount() {
        let mounts = parse(UNIFIED);
        let kind = |path| mount_of(&mounts, Path::new(path)).map(|mount| mount.kind.as_str());
        assert_eq!(kind("/sys/fs/bpf/lb-agent"), Some("bpf"));
        assert_eq!(kind("/sys/fs/bpfother"), Some("sysfs"));
        assert_eq!(kind("/var"), None);
        let over = parse("bpf /sys/fs/bpf bpf rw 0 0\ntmpfs /sys/fs/bpf tmpfs rw 0 0\n");
        assert_eq!(mount_of(&over, Path::new("/sys/fs/bpf/a")), over.last());
    }

    #[test]
    fn escapes_are_undone() {
        let mounts = parse(UNIFIED);
        assert_eq!(mounts[4].point, Path::new("/mnt/with blank\\040"));
    }

    #[test]
    fn broken_lines_are_skipped() {
        assert_eq!(parse("\n one\nonly two\n"), []);
    }
}
