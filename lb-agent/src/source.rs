//! Where Services, EndpointSlices and Nodes come from. Every source sends
//! [`crate::object::Change`]s.

pub mod kube;
pub mod manifests;
