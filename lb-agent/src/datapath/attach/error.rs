//! Why programs cannot be attached.

use std::io;

use aya::programs::ProgramError;
use aya::programs::links::LinkError;

use crate::datapath::object::error::LoadError;
use crate::datapath::pins::Pins;

/// Why a program could not be attached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    /// The kernel refused to attach the program.
    #[error("cannot attach {program} to {target}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The device or cgroup.
        target: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The pins cannot be read or written.
    #[error("cannot change the pins in {directory}")]
    Pins {
        /// The directory.
        directory: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl AttachError {
    /// An error about a program that cannot be attached.
    pub(super) fn attach(program: &'static str, target: String, failure: Failure) -> Self {
        Self::Attach {
            program,
            target,
            source: failure.into(),
        }
    }

    /// An error about pins that cannot be read or written.
    pub(in crate::datapath) fn pins(pins: &Pins, source: io::Error) -> Self {
        Self::Pins {
            directory: pins.root().display().to_string(),
            source,
        }
    }
}

/// Causes of an attach error.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Pin(#[from] aya::pin::PinError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("the embedded object has no program {0}")]
    Missing(String),
}
