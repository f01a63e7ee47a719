//! The kernel side: loads the programs, owns the maps, attaches and pins. The only module that names aya.

pub mod maps;
pub mod object;
pub mod probe;
