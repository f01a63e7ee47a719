//! The next step for a packet.

use crate::reason::Reason;

/// The next step for a packet. It fits into one word: LLVM would carry the undefined half of a
/// larger enum around, which the verifier refuses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Rewrite it according to its flow.
    Translate,
    /// The same, for a flow whose client stays with its backend.
    TranslateAffine,
    /// Check whether it opens a new flow, or continue that check.
    Open,
    /// Pass it: it needs no translation.
    Pass,
    /// Leave it to the next hook, which handles it.
    Leave,
    /// It has been sent back.
    Bounce,
    /// It has been forwarded.
    Redirect,
    /// It does not reach a backend.
    Stop(Reason),
}

const _: () = assert!(size_of::<Step>() == size_of::<u32>());
