//! Addresses that Pods of this node have or may have, as the objects say.

use std::collections::HashMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;

use super::nodes::pod_networks;
use crate::network::Network;

/// Those of endpoints and Pods, and the networks that the node has for its Pods.
#[derive(Debug, Default)]
pub(super) struct PodAddresses {
    /// How many objects name an address.
    named: HashMap<IpAddr, usize>,
    networks: Vec<Network>,
}

impl PodAddresses {
    /// One more object names these.
    pub(super) fn add(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        for address in addresses {
            *self.named.entry(address).or_default() += 1;
        }
    }

    /// One object fewer does.
    pub(super) fn remove(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        for address in addresses {
            if let Some(number) = self.named.get_mut(&address) {
                *number -= 1;
                if *number == 0 {
                    self.named.remove(&address);
                }
            }
        }
    }

    /// This Node has these networks for its Pods.
    pub(super) fn set_networks(&mut self, node: Option<&Node>) {
        self.networks = node.into_iter().flat_map(pod_networks).collect();
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.named.contains_key(&address) || self.networks.iter().any(|network| network.contains(address))
    }
}
