//! Test support.

pub mod packet;
