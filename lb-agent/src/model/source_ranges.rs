//! Which clients may use the load balancer addresses of a Service.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;

use super::values::quoted;
use super::{NodeConfig, Problems};
use crate::desired::SourceRanges;
use crate::network::{Cidr, Family};

/// Returns the source ranges of these addresses, from `spec.loadBalancerSourceRanges`.
///
/// As in kube-proxy, the families are independent: if a family has no range, all its clients are
/// allowed. A malformed range may belong to either family. So that it does not allow what it should
/// forbid, it makes both families require a valid range.
pub(super) fn source_ranges(
    service: &Service,
    load_balancer: &[IpAddr],
    node: &NodeConfig,
    problems: &mut Problems,
) -> SourceRanges {
    let texts = service
        .spec
        .as_ref()
        .and_then(|spec| spec.load_balancer_source_ranges.as_deref())
        .unwrap_or_default();
    let mut given = BTreeSet::new();
    let mut is_malformed = false;
    for text in texts
        .iter()
        .map(|text| text.trim())
        .filter(|text| !text.is_empty())
    {
        match text.parse::<Cidr>() {
            Ok(network) => {
                given.insert(network);
            }
            Err(error) => {
                is_malformed = true;
                problems.add(format!(
                    "spec.loadBalancerSourceRanges: {} is {error}",
                    quoted(text)
                ));
            }
        }
    }
    let mut ranges = SourceRanges::default();
    for family in Family::ALL {
        let addresses = || {
            let addresses = load_balancer.iter().copied();
            addresses.filter(|address| Family::of(*address) == family)
        };
        let networks = || given.iter().copied().filter(|network| network.family() == family);
        let is_filtered = is_malformed || networks().next().is_some();
        if !is_filtered || addresses().next().is_none() {
            continue;
        }
        ranges.filtered.insert(family);
        ranges.networks.extend(networks());
        if networks().any(|network| node.addresses.iter().any(|address| network.contains(*address))) {
            // If the node itself has such an address, packets from the node to it may also have it
            // as their source.
            ranges.node_allowed.insert(family);
            ranges.networks.extend(addresses().map(Cidr::host));
        }
    }
    ranges
}
