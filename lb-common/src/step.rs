//! What is to be done with a packet.

use crate::reason::Reason;

/// What is to be done with a packet. One number: LLVM would carry the undefined half of a larger
/// enum around, which the verifier refuses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Rewrite it as its flow says.
    Translate,
    /// The same, for a flow whose client stays with its backend.
    TranslateAffine,
    /// Look whether it belongs to a new flow, or go on looking for one.
    Open,
    /// It is not ours.
    Pass,
    /// It is ours, and the next hook handles it.
    Leave,
    /// It has been sent back.
    Bounce,
    /// It has been sent on.
    Redirect,
    /// It does not reach a backend.
    Stop(Reason),
}

const _: () = assert!(size_of::<Step>() == size_of::<u32>());
