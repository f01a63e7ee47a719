//! Makes Kubernetes Services work with eBPF: see the README.
fn main() {}
