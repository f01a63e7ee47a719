//! Where the BPF and cgroup file systems are mounted.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

const MOUNTS: &str = "/proc/self/mounts";

/// A mounted file system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// Where.
    pub point: PathBuf,
    /// Its type, such as `bpf` or `cgroup2`.
    pub kind: String,
}

/// What is mounted, in the order of mounting, as this process sees it.
pub fn mounts() -> io::Result<Vec<Mount>> {
    // Paths need not be UTF-8; those that this is about are.
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

/// The kernel writes blanks, tabs, newlines and backslashes as octal numbers.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(field.to_owned(), |field, (escape, character)| {
            field.replace(escape, character)
        })
}

/// The file system that a path is in, whether the path exists or not.
pub fn mount_of<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    // Of several mounts on one point the last one is seen.
    mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count())
}

/// The cgroup v2 hierarchy: where systemd mounts it, also beside cgroup v1, else wherever it is.
pub fn cgroup2(mounts: &[Mount]) -> Option<&Path> {
    let mut points = mounts
        .iter()
        .filter(|mount| mount.kind == "cgroup2")
        .map(|mount| mount.point.as_path());
    let usual = |point: &&Path| point.starts_with("/sys/fs/cgroup");
    points.clone().find(usual).or_else(|| points.next())
}

/// Why the socket programs do not work at what is mounted here: a cgroup namespace shows a part of
/// the hierarchy as its top. `None` if it is all of it.
///
/// # Errors
/// If the directory cannot be looked at.
pub fn partial_cgroup2(point: &Path) -> io::Result<Option<String>> {
    /// The number of the top directory of a hierarchy (`cgroup_root`, kernel/cgroup/cgroup.c).
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
    fn the_top_of_a_hierarchy_has_the_first_number_and_others_are_parts() {
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
