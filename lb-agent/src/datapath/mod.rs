//! The kernel's side: the only module that names aya.

pub mod probe;
