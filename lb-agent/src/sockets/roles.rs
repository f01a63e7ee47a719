//! Which network namespaces are Pods': a pure function.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_common::layout::namespace_role;

use super::place::Place;

/// What is known of a device of the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PodDevice {
    /// Whether it is the command line that says that it leads to a Pod.
    pub is_named: bool,
}

/// Whose namespaces are ([`namespace_role`]), by their cookies.
///
/// A Pod's has an address that is a Pod's as the objects say, or is behind a device that the command line names. Another one
/// is listed if it is behind a device that carries the programs of Pods' devices.
pub fn roles(
    places: &[Place],
    is_pod_address: impl Fn(IpAddr) -> bool,
    pod_device: impl Fn(u32) -> Option<PodDevice>,
) -> BTreeMap<u64, u32> {
    let role = |place: &Place| {
        let has_address = place.addresses.iter().any(|address| is_pod_address(*address));
        let mut devices = place.node_devices.iter().filter_map(|index| pod_device(*index));
        if has_address || devices.clone().any(|device| device.is_named) {
            return Some(namespace_role::POD);
        }
        devices.next().map(|_| namespace_role::OTHER)
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
    fn an_address_or_a_device_that_is_named_makes_a_pod() {
        let places = [
            place(1, &["10.244.1.2", "fd00::9"], &[12]),
            place(2, &["172.17.0.2", "fd00::2"], &[13]),
            place(3, &["172.17.0.3"], &[14]),
            place(4, &["172.17.0.4"], &[15]),
            place(5, &[], &[16]),
            // Such as the namespace behind the agent's own device.
            place(6, &["172.17.0.6"], &[20]),
            place(7, &[], &[]),
        ];
        let named: BTreeSet<IpAddr> = ["10.244.1.2", "fd00::2"].map(|text| text.parse().unwrap()).into();
        let device = |index| {
            let is_named = index == 14;
            (index < 20).then_some(PodDevice { is_named })
        };
        let roles = roles(&places, |address| named.contains(&address), device);
        let (pod, other) = (namespace_role::POD, namespace_role::OTHER);
        let expected = [(1, pod), (2, pod), (3, pod), (4, other), (5, other)];
        assert_eq!(roles, expected.into());
    }
}
