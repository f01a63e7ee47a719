//! The setup that a distribution's init does before anything else can run.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

/// The list of kernel modules, one per line, in the order of their dependencies.
const MODULES: &str = "/vm/modules";

/// File systems: type and mount point.
const FILE_SYSTEMS: [(&str, &str); 6] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("bpf", "/sys/fs/bpf"),
    ("cgroup2", "/sys/fs/cgroup"),
];

/// Mounts file systems and loads modules.
pub(super) fn prepare() -> Result<()> {
    // Nothing is mounted at /tmp: the tests are at the path where they were built, which may be
    // below it.
    fs::create_dir_all("/tmp").context("make /tmp")?;
    for (kind, place) in FILE_SYSTEMS {
        fs::create_dir_all(place).with_context(|| format!("make {place}"))?;
        mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount {kind} at {place}"))?;
    }
    load_modules()?;
    // A shell would have the usual limits; those on the memory of maps are not what is tested here.
    setrlimit(Resource::RLIMIT_NOFILE, 65_536, 65_536).context("raise the limit of open files")?;
    setrlimit(Resource::RLIMIT_CORE, 0, RLIM_INFINITY).context("forbid core dumps")
}

fn load_modules() -> Result<()> {
    let modules = fs::read_to_string(MODULES).with_context(|| format!("read {MODULES}"))?;
    for module in modules.lines() {
        let path = Path::new("/vm").join(module);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        finit_module(&file, &CString::default(), ModuleInitFlags::empty())
            .with_context(|| format!("load {}", path.display()))?;
    }
    Ok(())
}
