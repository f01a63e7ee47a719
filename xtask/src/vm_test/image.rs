//! The initramfs of a virtual machine: the tests, and everything that they call, at the same paths
//! as on this machine.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::archive::Archive;
use super::modules::Module;
use crate::command;

/// System programs that the tests call.
const TOOLS: [&str; 9] = [
    "bridge", "cat", "env", "ethtool", "ip", "ls", "setpriv", "sh", "tc",
];

/// The contents of all machines.
pub(super) struct Contents<'a> {
    /// The first process.
    pub(super) init: &'a Path,
    /// The project's programs.
    pub(super) programs: Vec<&'a Path>,
    /// The directories in which they run.
    pub(super) directories: BTreeSet<&'a Path>,
    /// The lines that list what the first process runs.
    pub(super) list: String,
}

/// Writes the part of an initramfs that is the same for all kernels. `stripped` is a directory for
/// the programs without debug information, which is most of their size.
pub(super) fn write_tests(path: &Path, contents: &Contents<'_>, stripped: &Path) -> Result<()> {
    fs::create_dir_all(stripped)?;
    let mut archive = Archive::create(path)?;
    // The output of the first process goes there. The kernel opens it before any file system of
    // devices is mounted.
    archive.add_device("/dev/console", 5, 1)?;
    let mut libraries = BTreeSet::new();
    archive.add_file("/init", &strip(contents.init, stripped)?)?;
    libraries.extend(libraries_of(contents.init)?);
    for program in &contents.programs {
        archive.add_file(text(program)?, &strip(program, stripped)?)?;
        libraries.extend(libraries_of(program)?);
    }
    for tool in TOOLS {
        add_tool(&mut archive, tool, &mut libraries)?;
    }
    for library in &libraries {
        archive.add_file(text(library)?, library)?;
    }
    for directory in &contents.directories {
        archive.add_directory(text(directory)?)?;
    }
    archive.add("/vm/programs", 0o644, contents.list.as_bytes())?;
    archive.finish()
}

/// Writes the part of an initramfs that belongs to a kernel.
pub(super) fn write_modules(path: &Path, modules: &[Module]) -> Result<()> {
    let mut archive = Archive::create(path)?;
    let mut list = String::new();
    for Module { name, code } in modules {
        archive.add(&format!("/vm/{name}.ko"), 0o644, code)?;
        list += &format!("{name}.ko\n");
    }
    archive.add("/vm/modules", 0o644, list.as_bytes())?;
    archive.finish()
}

fn add_tool(
    archive: &mut Archive<BufWriter<File>>,
    tool: &str,
    libraries: &mut BTreeSet<PathBuf>,
) -> Result<()> {
    let found = command::in_path(tool);
    let path = found
        .first()
        .with_context(|| format!("no {tool} in PATH: run `cargo xtask setup`"))?;
    libraries.extend(libraries_of(path)?);
    // This directory is in `PATH` of the first process.
    archive.add_file(&format!("/bin/{tool}"), path)
}

/// The program without debug information. It is created once for each build.
fn strip(program: &Path, directory: &Path) -> Result<PathBuf> {
    let stripped = directory.join(program.file_name().context("a program has a name")?);
    let modified = |path: &Path| fs::metadata(path).and_then(|data| data.modified());
    if modified(&stripped).is_ok_and(|time| modified(program).is_ok_and(|built| built < time)) {
        return Ok(stripped);
    }
    let mut strip = Command::new("strip");
    command::run(strip.arg("-o").arg(&stripped).arg(program))?;
    Ok(stripped)
}

fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    Ok(parse_libraries(&command::output(
        Command::new("ldd").arg(program),
    )?))
}

/// Reads `libc.so.6 => /lib/libc.so.6 (0x7f…)` and `/lib64/ld-linux-x86-64.so.2 (0x7f…)`; the
/// kernel's own has no file.
fn parse_libraries(list: &str) -> Vec<PathBuf> {
    let words = list.lines().filter_map(|line| {
        line.split_whitespace()
            .find(|word| word.starts_with('/'))
            .map(PathBuf::from)
    });
    words.collect()
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_the_output_of_ldd() {
        let list = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f1d)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f1e)\n";
        assert_eq!(
            parse_libraries(list),
            [
                Path::new("/lib/x/libc.so.6"),
                Path::new("/lib64/ld-linux-x86-64.so.2")
            ]
        );
    }
}
