//! The format of an initramfs: cpio, "newc"
//! (Documentation/driver-api/early-userspace/buffer-format.rst of Linux).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_755;
const CHARACTER_DEVICE: u32 = 0o020_600;
const REGULAR: u32 = 0o100_000;

/// Writes an archive.
pub(super) struct Archive<W: Write> {
    output: W,
    paths: BTreeSet<String>,
}

/// The fields of an entry's header.
#[derive(Default)]
struct Head {
    mode: u32,
    size: u32,
    device: (u32, u32),
}

impl Archive<BufWriter<File>> {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self::new(BufWriter::new(file)))
    }
}

impl<W: Write> Archive<W> {
    fn new(output: W) -> Self {
        Self {
            output,
            paths: BTreeSet::new(),
        }
    }

    /// Adds a file with these contents, and its parent directories. Does nothing if the path exists
    /// already.
    pub(super) fn add(&mut self, path: &str, mode: u32, contents: &[u8]) -> Result<()> {
        if !self.enter(path)? {
            return Ok(());
        }
        let head = Head {
            mode: REGULAR | mode,
            size: u32::try_from(contents.len()).with_context(|| format!("{path} is too big"))?,
            ..Head::default()
        };
        self.head(path, &head)?;
        self.output.write_all(contents)?;
        self.pad(contents.len())
    }

    /// Adds a file of this machine.
    pub(super) fn add_file(&mut self, path: &str, source: &Path) -> Result<()> {
        let contents = fs::read(source).with_context(|| format!("read {}", source.display()))?;
        let mode = fs::metadata(source)?.permissions().mode() & 0o777;
        self.add(path, mode, &contents)
    }

    /// Adds an empty directory.
    pub(super) fn add_directory(&mut self, path: &str) -> Result<()> {
        self.enter(&format!("{path}/")).map(drop)
    }

    /// Adds a character device.
    pub(super) fn add_device(&mut self, path: &str, major: u32, minor: u32) -> Result<()> {
        if !self.enter(path)? {
            return Ok(());
        }
        let head = Head {
            mode: CHARACTER_DEVICE,
            device: (major, minor),
            ..Head::default()
        };
        self.head(path, &head)
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> Result<()> {
        self.head("TRAILER!!!", &Head::default())?;
        Ok(self.output.flush()?)
    }

    /// Adds the parent directories of a path. Returns whether the path is new.
    fn enter(&mut self, path: &str) -> Result<bool> {
        for (end, _) in path.match_indices('/').skip(1) {
            if self.paths.insert(path[..end].to_owned()) {
                let head = Head {
                    mode: DIRECTORY,
                    ..Head::default()
                };
                self.head(&path[..end], &head)?;
            }
        }
        Ok(self.paths.insert(path.to_owned()))
    }

    fn head(&mut self, path: &str, head: &Head) -> Result<()> {
        let path = path.trim_start_matches('/');
        let number = u32::try_from(self.paths.len())?;
        let name_size = u32::try_from(path.len() + 1)?;
        let (major, minor) = head.device;
        // inode, mode, user, group, links, time, size, device (2 numbers), represented device (2
        // numbers), name's size, checksum
        let fields = [
            number, head.mode, 0, 0, 1, 0, head.size, 0, 0, major, minor, name_size, 0,
        ];
        write!(self.output, "070701")?;
        for field in fields {
            write!(self.output, "{field:08x}")?;
        }
        write!(self.output, "{path}\0")?;
        self.pad(6 + fields.len() * 8 + path.len() + 1)
    }

    /// Pads to a multiple of four, at which headers and contents begin.
    fn pad(&mut self, written: usize) -> Result<()> {
        let missing = written.next_multiple_of(4) - written;
        Ok(self.output.write_all(&[0; 3][..missing])?)
    }
}

/// Concatenates archives. The kernel unpacks them in sequence.
pub(super) fn join(parts: &[&Path], whole: &Path) -> Result<()> {
    let mut output = File::create(whole).with_context(|| format!("create {}", whole.display()))?;
    for part in parts {
        let mut input = File::open(part).with_context(|| format!("open {}", part.display()))?;
        io::copy(&mut input, &mut output)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_follow_their_directories() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.add("/vm/list", 0o644, b"hello").expect("written");
        archive.add("/vm/list", 0o644, b"again").expect("left out");
        archive.add_device("/dev/console", 5, 1).expect("written");
        archive.finish().expect("written");
        let text = String::from_utf8_lossy(&bytes);
        let names: Vec<_> = text
            .match_indices("070701")
            .map(|(at, _)| {
                assert_eq!(at % 4, 0, "{at}");
                text[at + 110..].split('\0').next().expect("a name")
            })
            .collect();
        assert_eq!(names, ["vm", "vm/list", "dev", "dev/console", "TRAILER!!!"]);
        assert!(text.contains("hello") && !text.contains("again"));
    }
}
