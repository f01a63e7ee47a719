//! Test support.

pub mod api_server;
pub mod bench;
pub mod connect_proxy;
pub mod demo;
pub mod kernel;
pub mod lab;
pub mod packet;
pub mod slowness;
pub mod stop;
pub mod test_programs;
