//! Addresses that Pods of this node have or may have, according to the objects.

use std::collections::HashMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;

use super::nodes::pod_networks;
use crate::network::Cidr;

/// The addresses of endpoints and Pods, and the node's Pod networks.
#[derive(Debug, Default)]
pub(super) struct PodAddresses {
    /// How many objects contain each address.
    named: HashMap<IpAddr, usize>,
    networks: Vec<Cidr>,
}

impl PodAddresses {
    /// Adds the addresses of an object.
    pub(super) fn add(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        for address in addresses {
            *self.named.entry(address).or_default() += 1;
        }
    }

    /// Removes the addresses of an object.
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

    /// Sets the Pod networks of this node.
    pub(super) fn set_networks(&mut self, node: Option<&Node>) {
        self.networks = node.into_iter().flat_map(pod_networks).collect();
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.named.contains_key(&address) || self.networks.iter().any(|network| network.contains(address))
    }
}
