//! The sources of Services, EndpointSlices and Nodes. Every source sends
//! [`crate::object::Change`]s.

pub mod kube;
pub mod manifests;
