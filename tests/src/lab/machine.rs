//! What nodes, Pods and outside clients have in common.

use std::path::{Path, PathBuf};

use super::address::Addresses;
use super::namespace::Namespace;

/// A place where processes run: the host side of a node, a Pod or an outside client.
///
/// A clone is the same place. Once its lab is gone, nothing can be started in it any more.
#[derive(Clone, Debug)]
pub struct Machine {
    pub(super) name: String,
    pub(super) namespace: Namespace,
    pub(super) cgroup: PathBuf,
    pub(super) addresses: Addresses,
    pub(super) far_device: String,
    /// Which one outside it is, if it is outside.
    pub(super) outside_index: Option<u8>,
    /// Where processes write their logs.
    pub(super) logs: PathBuf,
}

impl Machine {
    /// Its name; servers answer with it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The control group of its processes.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Its addresses.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Name of the other end of its link `eth0`: of a Pod in its node's namespace, of a node or an outside client in
    /// the fabric.
    pub fn far_device(&self) -> &str {
        &self.far_device
    }
}
