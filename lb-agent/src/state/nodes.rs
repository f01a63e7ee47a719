//! Addresses of the cluster's other Nodes, and the Services that may have such an address.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Node, NodeAddress, Service};

use crate::desired::NamespacedName;
use crate::network::{Cidr, parse_address};

/// The addresses of the other Nodes.
#[derive(Debug, Default)]
pub(super) struct OtherNodes {
    by_name: HashMap<String, BTreeSet<IpAddr>>,
    /// How many Nodes have each address. While an address moves, two Nodes may have it.
    holders: HashMap<IpAddr, usize>,
}

impl OtherNodes {
    /// The names of the Nodes.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.by_name.keys()
    }

    /// Records a Node; `None` means that it is deleted. Returns the addresses that no Node had
    /// before, and those that no Node has any more.
    pub(super) fn set(&mut self, name: &str, node: Option<&Node>) -> (BTreeSet<IpAddr>, BTreeSet<IpAddr>) {
        let new: BTreeSet<IpAddr> = node.map(|node| addresses(node).collect()).unwrap_or_default();
        let old = match node {
            Some(_) => self.by_name.insert(name.to_owned(), new.clone()),
            None => self.by_name.remove(name),
        };
        let old = old.unwrap_or_default();
        let mut added: BTreeSet<IpAddr> = new.difference(&old).copied().collect();
        let mut gone: BTreeSet<IpAddr> = old.difference(&new).copied().collect();
        added.retain(|address| {
            let holders = self.holders.entry(*address).or_default();
            *holders += 1;
            *holders == 1
        });
        gone.retain(|address| {
            let holders = self.holders.entry(*address).or_default();
            *holders = holders.saturating_sub(1);
            let is_gone = *holders == 0;
            if is_gone {
                self.holders.remove(address);
            }
            is_gone
        });
        (added, gone)
    }
}

/// The addresses of a Node, in the order of the object.
fn addresses(node: &Node) -> impl Iterator<Item = IpAddr> {
    typed(node, "InternalIP").chain(typed(node, "ExternalIP"))
}

/// The addresses of a Node with this type, in the order of the object.
pub(super) fn typed(node: &Node, type_: &'static str) -> impl Iterator<Item = IpAddr> {
    let listed = node
        .status
        .as_ref()
        .and_then(|status| status.addresses.as_deref());
    let of_type = move |address: &&NodeAddress| address.type_ == type_;
    let typed = listed.unwrap_or_default().iter().filter(of_type);
    typed.filter_map(|address| parse_address(&address.address))
}

/// The Pod networks of a Node. Texts that are not networks are skipped; the API server rejects
/// them.
pub(super) fn pod_networks(node: &Node) -> impl Iterator<Item = Cidr> {
    let spec = node.spec.iter();
    let texts = spec.flat_map(|spec| match &spec.pod_cidrs {
        Some(cidrs) if !cidrs.is_empty() => cidrs.as_slice(),
        _ => spec.pod_cidr.as_slice(),
    });
    texts.filter_map(|text| text.parse().ok())
}

/// Services by their external IPs and load balancer addresses.
#[derive(Debug, Default)]
pub(super) struct AddressIndex(HashMap<IpAddr, BTreeSet<NamespacedName>>);

impl AddressIndex {
    pub(super) fn insert(&mut self, name: &NamespacedName, service: &Service) {
        for address in external_addresses(service) {
            self.0.entry(address).or_default().insert(name.clone());
        }
    }

    pub(super) fn remove(&mut self, name: &NamespacedName, service: &Service) {
        for address in external_addresses(service) {
            if let Some(names) = self.0.get_mut(&address) {
                names.remove(name);
                if names.is_empty() {
                    self.0.remove(&address);
                }
            }
        }
    }

    /// The Services with this address.
    pub(super) fn at(&self, address: IpAddr) -> impl Iterator<Item = &NamespacedName> {
        self.0.get(&address).into_iter().flatten()
    }
}

fn external_addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    let external = service
        .spec
        .iter()
        .flat_map(|spec| spec.external_ips.iter().flatten());
    let status = service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    let ingress = status
        .into_iter()
        .flat_map(|balancer| balancer.ingress.iter().flatten());
    let texts = external.chain(ingress.filter_map(|ingress| ingress.ip.as_ref()));
    texts.filter_map(|text| parse_address(text))
}
