//! Why the kernel programs cannot be loaded.

use std::path::PathBuf;

use aya::programs::ProgramError;

/// Why the kernel programs could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The pin directory cannot be created.
    #[error("cannot create {}: is a bpf file system mounted there? (`mount -t bpf bpf /sys/fs/bpf`)", path.display())]
    PinDirectory {
        /// The directory.
        path: PathBuf,
        /// The kernel's error.
        source: std::io::Error,
    },
    /// The object file was rejected.
    #[error("cannot create the BPF maps")]
    Object(#[source] Box<aya::EbpfError>),
    /// The verifier rejected a program.
    #[error("the kernel refuses program {name}: {reason}")]
    Program {
        /// The program's name.
        name: String,
        /// The end of the verifier's log, or another cause.
        reason: String,
    },
    /// A pinned map has another layout.
    #[error("pinned map {} has another layout than this agent's", path.display())]
    Layout {
        /// The pinned map.
        path: PathBuf,
    },
}

impl LoadError {
    /// An error with only the end of the verifier's log.
    pub(in crate::datapath) fn program(name: &str, error: ProgramError) -> Self {
        Self::Program {
            name: name.to_owned(),
            reason: shorten(error),
        }
    }
}

/// Returns the end of the verifier's log, which contains the cause. The whole log has thousands of
/// lines.
fn shorten(error: ProgramError) -> String {
    const LINES: usize = 12;
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
            let end = lines
                .get(lines.len().saturating_sub(LINES)..)
                .unwrap_or_default()
                .join("\n");
            format!("{io_error}\n{end}")
        }
        error => crate::describe(&error),
    }
}
