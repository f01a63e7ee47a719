//! Test support.

pub mod api_server;
pub mod packet;
