//! Tests which values Services keep while other Services are added and deleted.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Returns two Services that get the same address if they are alone, and that address.
fn clash() -> (String, String, String) {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for number in 0.. {
        let name = format!("s{number:03}");
        let address = cluster_ip(&first(&[(&name, PLAIN)], SMALL), &name);
        if let Some(other) = seen.insert(address.clone(), name.clone()) {
            return (other, name, address);
        }
    }
    unreachable!("there are 14 addresses")
}

#[test]
fn allocated_values_stay_when_services_are_added() {
    let (early, late, address) = clash();
    let cidrs = cidrs(SMALL);
    let alone = allocate(&AllocationState::default(), &objects(&[(&late, PLAIN)]), &cidrs);
    assert_eq!(cluster_ip(&alone, &late), address);
    let both = allocate(&alone.state, &objects(&[(&early, PLAIN), (&late, PLAIN)]), &cidrs);
    assert_eq!(cluster_ip(&both, &late), address);
    assert_ne!(cluster_ip(&both, &early), address);
    assert_eq!(texts(&both.moved), [""; 0]);
    // Without a state, the first by name gets the address.
    let fresh = first(&[(&early, PLAIN), (&late, PLAIN)], SMALL);
    assert_eq!(cluster_ip(&fresh, &early), address);
}

#[test]
fn a_service_that_returns_gets_its_values_back() {
    let (early, late, address) = clash();
    let cidrs = cidrs(SMALL);
    let alone = allocate(&AllocationState::default(), &objects(&[(&late, PLAIN)]), &cidrs);
    // The Service is deleted, and another one whose hash chooses the same address is added.
    let other = allocate(&alone.state, &objects(&[(&early, PLAIN)]), &cidrs);
    assert_ne!(cluster_ip(&other, &early), address);
    let both = allocate(&other.state, &objects(&[(&early, PLAIN), (&late, PLAIN)]), &cidrs);
    assert_eq!(cluster_ip(&both, &late), address);
    assert_eq!(cluster_ip(&both, &early), cluster_ip(&other, &early));
}

#[test]
fn values_of_deleted_services_are_allocated_last() {
    let names: Vec<String> = (10..38).map(|number| format!("s{number}")).collect();
    let services: Vec<_> = names.iter().map(|name| (name.as_str(), PLAIN)).collect();
    let cidrs = cidrs(SMALL);
    let old = allocate(&AllocationState::default(), &objects(&services[..14]), &cidrs);
    let new = allocate(&old.state, &objects(&services[14..]), &cidrs);
    assert_eq!(
        (new.faults.len(), new.state.services.len(), new.state.gone.len()),
        (0, 14, 0)
    );
}

#[test]
fn the_number_of_remembered_deleted_services_is_limited() {
    let names: Vec<String> = (0..=AllocationState::GONE_MAX)
        .map(|number| format!("s{number:05}"))
        .collect();
    let services: Vec<_> = names.iter().map(|name| (name.as_str(), PLAIN)).collect();
    let all = first(&services, DEFAULT);
    let none = allocate(&all.state, &Objects::new(), &cidrs(DEFAULT));
    assert_eq!(none.state.gone.len(), AllocationState::GONE_MAX);
    assert_eq!(none.state.gone[0].0, "default/s00001");
}

#[test]
fn a_value_in_a_manifest_is_taken_from_another_service() {
    let cidrs = cidrs(DEFAULT);
    let before = allocate(
        &AllocationState::default(),
        &objects(&[("web", NODE_PORT)]),
        &cidrs,
    );
    let (address, port) = (cluster_ip(&before, "web"), node_ports(&before, "web")[0].unwrap());
    let claim = format!("{{type: NodePort, clusterIP: {address}, ports: [{{port: 1, nodePort: {port}}}]}}");
    let after = allocate(
        &before.state,
        &objects(&[("claim", &claim), ("web", NODE_PORT)]),
        &cidrs,
    );
    let (new_address, new_port) = (cluster_ip(&after, "web"), node_ports(&after, "web")[0].unwrap());
    let tail = "write what must not change into its manifest";
    assert_eq!(
        texts(&after.moved),
        [
            format!(
                "Service default/web: it does not keep clusterIP {address}, since Service default/claim names it in its \
                 manifest; it gets clusterIP {new_address}: {tail}"
            ),
            format!(
                "Service default/web: it does not keep nodePort {port} for port 80, since Service default/claim names \
                 it in its manifest; it gets nodePort {new_port} for port 80: {tail}"
            )
        ]
    );
}

#[test]
fn a_new_network_moves_addresses_outside_of_it() {
    let old = first(&[("web", PLAIN)], DEFAULT);
    let services = objects(&[("web", PLAIN)]);
    let moved = allocate(&old.state, &services, &cidrs("10.97.0.0/16"));
    assert!(cluster_ip(&moved, "web").starts_with("10.97."));
    assert!(
        texts(&moved.moved)[0].contains("since it is outside of the range"),
        "{:?}",
        moved.moved
    );
    // A network that contains the old network moves nothing.
    let wider = allocate(&old.state, &services, &cidrs("10.96.0.0/12"));
    assert_eq!(cluster_ip(&wider, "web"), cluster_ip(&old, "web"));
    assert_eq!(texts(&wider.moved), [""; 0]);
}

#[test]
fn values_that_are_no_longer_requested_are_free() {
    let cidrs = cidrs(DEFAULT);
    let before = allocate(
        &AllocationState::default(),
        &objects(&[("web", NODE_PORT)]),
        &cidrs,
    );
    let headless = "{clusterIP: None, ports: [{port: 80}]}";
    let after = allocate(&before.state, &objects(&[("web", headless)]), &cidrs);
    assert_eq!(after.state, AllocationState::default());
    let plain = allocate(&before.state, &objects(&[("web", PLAIN)]), &cidrs);
    assert_eq!(cluster_ip(&plain, "web"), cluster_ip(&before, "web"));
    assert_eq!(node_ports(&plain, "web"), [None]);
}

#[test]
fn a_state_with_a_duplicate_address_is_repaired() {
    let cidrs = cidrs(DEFAULT);
    let mut state = first(&[("a", PLAIN)], DEFAULT).state;
    let given = state.services["default/a"].clone();
    state.services.insert("default/b".to_owned(), given.clone());
    state.gone.push(("default/c".to_owned(), given));
    let allocation = allocate(&state, &objects(&[("a", PLAIN), ("b", PLAIN)]), &cidrs);
    assert_ne!(cluster_ip(&allocation, "a"), cluster_ip(&allocation, "b"));
    assert!(texts(&allocation.moved)[0].contains("since Service default/a has it"));
    assert_eq!(allocation.state.gone, []);
}

/// Specifications of Services that compete in a small network.
const KINDS: [&str; 6] = [
    PLAIN,
    NODE_PORT,
    "{type: LoadBalancer, externalTrafficPolicy: Local, ports: [{port: 80}, {name: b, port: 81}]}",
    "{clusterIP: 10.96.0.3, ports: [{port: 80}]}",
    "{type: NodePort, clusterIP: 10.96.0.9, ports: [{port: 80, nodePort: 30086}]}",
    "{clusterIP: None, ports: [{port: 80}]}",
];

/// Sequences of sets of Services. Each Service is a number with an index into [`KINDS`].
fn histories() -> impl Strategy<Value = Vec<BTreeMap<u8, usize>>> {
    let services = proptest::collection::btree_map(0..24_u8, 0..KINDS.len(), 0..18);
    proptest::collection::vec(services, 1..6)
}

fn of_numbers(services: &BTreeMap<u8, usize>) -> Objects {
    let services = services.iter();
    services
        .map(|(number, kind)| object(&format!("s{number:02}"), KINDS[*kind]))
        .collect()
}

proptest! {
    #[test]
    fn random_changes_keep_values_unique_and_stable(history in histories()) {
        let cidrs = cidrs(SMALL);
        let mut state = AllocationState::default();
        let mut before = Objects::new();
        for services in history {
            let services = of_numbers(&services);
            let allocation = allocate(&state, &services, &cidrs);
            // No two Services have the same value.
            let mut seen = BTreeSet::new();
            for (service, given) in &allocation.state.services {
                for value in given.values() {
                    prop_assert!(seen.insert(value.to_string()), "{service} {value}");
                    prop_assert!(!["10.96.0.0", "10.96.0.15"].contains(&value.to_string().as_str()));
                }
            }
            // No Service has a value that a manifest names.
            for (reference, object) in &services {
                let Object::Service(service) = &**object else { continue };
                let Some(asked) = Asked::of(service, &cidrs) else { continue };
                for claim in asked.claims {
                    prop_assert!(!seen.contains(&claim.to_string()), "{reference} {claim}");
                }
            }
            // An unchanged Service keeps its values, unless a manifest names them.
            for (service, given) in &state.services {
                let (namespace, name) = service.split_once('/').unwrap();
                let reference = ObjectReference { kind: ObjectKind::Service, namespace: namespace.into(), name: name.into() };
                let is_same = services.get(&reference) == before.get(&reference);
                let is_moved = allocation.moved.iter().any(|(moved, _)| *moved == reference);
                if is_same && !is_moved {
                    let new: Vec<Value> = allocation.state.services[service].values().collect();
                    prop_assert!(given.values().all(|value| new.contains(&value)), "{service} {given:?} {new:?}");
                }
            }
            let is_claimed = |(_, text): &Note| text.contains("names it in its manifest");
            prop_assert!(allocation.moved.iter().all(is_claimed), "{:?}", allocation.moved);
            // Another allocation with the same Services changes nothing, so it is stable after a
            // restart.
            let again = allocate(&allocation.state, &services, &cidrs);
            prop_assert_eq!(&again.state, &allocation.state);
            prop_assert_eq!(&again.filled, &allocation.filled);
            prop_assert!(again.moved.is_empty() && again.new.is_empty());
            (state, before) = (allocation.state, services);
        }
    }
}
