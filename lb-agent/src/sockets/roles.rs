//! Determines which network namespaces belong to Pods. A pure function.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_common::layout::namespace_role;

use super::place::Place;

/// Returns the roles of namespaces ([`namespace_role`]), by cookie. `are_named` is true if the
/// command line selects the Pods' devices.
///
/// A namespace is a Pod's if it has an address of a Pod object, or is behind a device that the
/// command line selects. Other namespaces are listed if they are behind a device that carries the
/// programs for Pods' devices.
pub fn roles(
    places: &[Place],
    is_pod_address: impl Fn(IpAddr) -> bool,
    is_pod_device: impl Fn(u32) -> bool,
    are_named: bool,
) -> BTreeMap<u64, u32> {
    let role = |place: &Place| {
        let has_address = place.addresses.iter().any(|address| is_pod_address(*address));
        let has_device = place.node_devices.iter().any(|index| is_pod_device(*index));
        match (has_address, has_device) {
            (true, _) => Some(namespace_role::POD),
            (false, true) if are_named => Some(namespace_role::POD),
            (false, true) => Some(namespace_role::OTHER),
            (false, false) => None,
        }
    };
    let rows = places.iter().map(|place| Some((place.cookie, role(place)?)));
    rows.flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn place(cookie: u64, addresses: &[&str], node_devices: &[u32]) -> Place {
        Place {
            cookie,
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            node_devices: node_devices.iter().copied().collect(),
        }
    }

    #[test]
    fn a_pod_address_or_a_selected_device_makes_a_pod_namespace() {
        let places = [
            place(1, &["10.244.1.2", "fd00::9"], &[12]),
            place(2, &["172.17.0.2", "fd00::2"], &[13]),
            place(3, &["172.17.0.3"], &[14]),
            place(4, &["172.17.0.4"], &[15]),
            place(5, &[], &[16]),
            // For example, the namespace behind the agent's own device.
            place(6, &["172.17.0.6"], &[20]),
            place(7, &[], &[]),
        ];
        let addresses: BTreeSet<IpAddr> = ["10.244.1.2", "fd00::2"].map(|text| text.parse().unwrap()).into();
        let is_pod_address = |address| addresses.contains(&address);
        let (pod, other) = (namespace_role::POD, namespace_role::OTHER);
        let found = roles(&places, is_pod_address, |index| index < 20, false);
        let expected = [(1, pod), (2, pod), (3, other), (4, other), (5, other)];
        assert_eq!(found, expected.into());
        // The command line selects one of the devices.
        let found = roles(&places, is_pod_address, |index| index == 14, true);
        assert_eq!(found, [(1, pod), (2, pod), (3, pod)].into());
    }
}
