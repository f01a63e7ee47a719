//! Test support.

pub mod api_server;
pub mod lab;
pub mod packet;
