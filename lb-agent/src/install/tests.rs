//! Random sequences of changes to Services, with and without failing writes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use lb_common::layout::{Frontend, Region, frontend_flags};
use proptest::prelude::*;

use super::*;
use crate::desired::{
    DesiredBackend, DesiredFrontend, DesiredVip, FrontendKind, ServiceHealth, ServiceType, SourceRanges,
    TrafficPolicy,
};
use crate::maglev;
use crate::maps::testing::{FakeMaps, FaultyMaps};
use crate::maps::{Backend, BackendState, Capacity, MapImage, MapOp, Protocol, dump};
use crate::network::Cidr;

const CAPACITY: Capacity = Capacity {
    frontends: 100,
    slots: 40_000,
    backends: 100,
    services: 30,
    source_ranges: 100,
};

/// How long absent backends keep their connections.
const ABSENCE: Duration = Duration::from_secs(5);

fn name(number: u8) -> NamespacedName {
    NamespacedName {
        namespace: "default".to_owned(),
        name: format!("service-{number}"),
    }
}

fn vip(number: u8) -> IpAddr {
    match number % 4 {
        3 => format!("fd00:96::{number}").parse().unwrap(),
        _ => format!("10.96.0.{number}").parse().unwrap(),
    }
}

fn endpoint(number: u8) -> SocketAddr {
    match number % 3 {
        2 => format!("[fd00:1::{number}]:8080").parse().unwrap(),
        _ => format!("10.1.0.{number}:8080").parse().unwrap(),
    }
}

fn backend(number: u8, kind: u8) -> DesiredBackend {
    DesiredBackend {
        address: endpoint(number),
        local: kind & 4 != 0,
        in_cluster: kind & 1 != 0,
        in_local: kind & 2 != 0,
        leaving: kind & 8 != 0,
    }
}

/// A port: its name, frontends as (address, port), and backends as (endpoint, flags).
type RandomPort = (u8, BTreeSet<(u8, u8)>, BTreeMap<u8, u8>);

fn service(ports: Vec<RandomPort>, created: i64) -> DesiredService {
    let mut seen = BTreeSet::new();
    let mut names = BTreeSet::new();
    let mut vips = BTreeMap::new();
    let mut desired = Vec::new();
    for (name, frontends, backends) in ports {
        if !names.insert(name) {
            continue;
        }
        let frontends: Vec<_> = frontends
            .into_iter()
            .filter(|key| seen.insert(*key))
            .map(|(address, port)| {
                let kind = match (port, name) {
                    (0, 0) => FrontendKind::NodePort,
                    (0, _) => FrontendKind::LoadBalancer,
                    _ => FrontendKind::ClusterIp,
                };
                let desired_vip = DesiredVip {
                    address: vip(address),
                    kind,
                    passes_unknown: address % 2 == 0,
                    has_endpoints: backends.values().any(|kind| kind & 3 != 0),
                };
                vips.entry(address).or_insert(desired_vip);
                DesiredFrontend {
                    key: FrontendKey::Port(vip(address), 80 + u16::from(port), Protocol::Tcp),
                    kind,
                    flags: match (port, name) {
                        (0, 0) => frontend_flags::OUTSIDE_LOCAL,
                        _ => 0,
                    },
                }
            })
            .collect();
        let mut backends: Vec<_> = backends
            .into_iter()
            .map(|(number, kind)| backend(number, kind))
            .collect();
        backends.sort_by_key(|backend| backend.address);
        desired.push(DesiredPort {
            port: PortName {
                name: format!("port-{name}"),
                protocol: Protocol::Tcp,
            },
            frontends,
            affinity_seconds: u32::from(name),
            backends,
            released: Vec::new(),
        });
    }
    DesiredService {
        service_type: ServiceType::ClusterIp,
        created: Some(created),
        ports: desired,
        vips: vips.into_values().collect(),
        source_ranges: SourceRanges::default(),
        health: ServiceHealth::default(),
    }
}

/// A random subset of four networks.
fn source_ranges(networks: &BTreeSet<u8>, node_allowed: bool) -> SourceRanges {
    let all = ["10.0.0.0/8", "172.16.0.0/12", "fd00::/8", "2001:db8::/32"];
    let networks: BTreeSet<Cidr> = (networks.iter())
        .map(|index| all[usize::from(*index)].parse().unwrap())
        .collect();
    let filtered: BTreeSet<Family> = networks.iter().map(Cidr::family).collect();
    SourceRanges {
        node_allowed: if node_allowed {
            filtered.clone()
        } else {
            BTreeSet::new()
        },
        filtered,
        networks,
    }
}

fn random_service() -> impl Strategy<Value = DesiredService> {
    let port = (
        0..3_u8,
        prop::collection::btree_set((0..6_u8, 0..2_u8), 1..4),
        prop::collection::btree_map(0..8_u8, 0..16_u8, 0..6),
    );
    let networks = prop::collection::btree_set(0..4_u8, 0..3);
    (
        prop::collection::vec(port, 1..3),
        0..3_i64,
        networks,
        any::<bool>(),
    )
        .prop_map(|(ports, created, networks, node_allowed)| DesiredService {
            source_ranges: source_ranges(&networks, node_allowed),
            ..service(ports, created)
        })
}

fn history() -> impl Strategy<Value = Vec<(u8, Option<DesiredService>)>> {
    prop::collection::vec((0..5_u8, prop::option::weighted(0.8, random_service())), 1..12)
}

/// An installer with its maps and its clock.
struct Bench {
    installer: Installer,
    maps: FaultyMaps<FakeMaps>,
    now: Instant,
}

impl Bench {
    fn new(capacity: Capacity, percent: u64, seed: u64) -> Self {
        let maps = FaultyMaps::new(FakeMaps::new(capacity), percent, seed);
        let mut bench = Self {
            installer: restored(&maps),
            maps,
            now: Instant::now(),
        };
        bench.installer.first_sync(Vec::new(), &mut bench.maps, bench.now);
        bench
    }

    /// A new agent that finds `maps` and these Services.
    fn restart(maps: FaultyMaps<FakeMaps>, services: &BTreeMap<u8, DesiredService>) -> Self {
        let mut bench = Self {
            installer: restored(&maps),
            maps,
            now: Instant::now(),
        };
        let services = services
            .iter()
            .map(|(number, desired)| (name(*number), Arc::new(desired.clone())));
        bench
            .installer
            .first_sync(services.collect(), &mut bench.maps, bench.now);
        bench
    }

    fn set(&mut self, number: u8, desired: Option<DesiredService>) {
        self.installer.set(
            &name(number),
            desired.map(Arc::new),
            &BTreeSet::new(),
            &mut self.maps,
            self.now,
        );
    }

    fn settle(&mut self) {
        for _ in 0..1000 {
            let Some(due) = self.installer.next_due() else {
                return;
            };
            self.now = self.now.max(due);
            self.installer.tick(&mut self.maps, self.now);
        }
        panic!("the installer still has work scheduled: {:?}", self.installer);
    }

    fn image(&self) -> MapImage {
        self.maps.image().unwrap()
    }

    /// Checks that the maps contain the desired state and nothing else.
    fn check(&self) {
        let image = self.image();
        let mut rows = BTreeSet::new();
        let mut n_backends = 0;
        for service in self.installer.services() {
            assert_eq!(service.failure, None);
            rows.extend(
                service
                    .desired
                    .vips
                    .iter()
                    .map(|vip| FrontendKey::Wildcard(vip.address)),
            );
            for port in &service.desired.ports {
                let mut families = BTreeSet::new();
                for frontend in &port.frontends {
                    rows.insert(frontend.key);
                    if service.conflicts.iter().all(|(key, _)| *key != frontend.key) {
                        families.insert(Family::of(frontend.key.address()));
                        check_row(&image, port, frontend);
                        check_ranges(&image, &service.desired.source_ranges, frontend);
                    }
                }
                let used = |backend: &&DesiredBackend| families.contains(&Family::of(backend.address.ip()));
                n_backends += port.backends.iter().filter(used).count();
            }
        }
        self.check_wildcards(&image);
        assert_eq!(
            rows,
            image.frontends.keys().copied().collect(),
            "{}",
            dump(&image)
        );
        let live = Family::ALL
            .into_iter()
            .flat_map(|family| image.backends(family).values());
        let is_wanted = |row: &&Backend| !matches!(row.state, BackendState::Gone | BackendState::Absent);
        assert_eq!(live.filter(is_wanted).count(), n_backends, "{}", dump(&image));
    }

    /// Checks that each wildcard row combines all Services that share its address.
    fn check_wildcards(&self, image: &MapImage) {
        for (key, row) in &image.frontends {
            let FrontendKey::Wildcard(address) = key else {
                continue;
            };
            let vips: Vec<_> = self
                .installer
                .services()
                .flat_map(|service| service.desired.vips.iter().map(move |vip| (service.desired, vip)))
                .filter(|(_, vip)| vip.address == *address)
                .collect();
            let has = |flag| row.flags & flag != 0;
            assert_eq!(
                (has(frontend_flags::PASS_UNKNOWN), has(frontend_flags::ECHO)),
                (
                    vips.iter().all(|(_, vip)| vip.passes_unknown),
                    vips.iter().any(|(_, vip)| vip.has_endpoints)
                )
            );
            let family = Family::of(*address);
            if let [(desired, vip)] = &vips[..]
                && desired.source_ranges.filter(vip.kind, family)
            {
                assert_eq!(
                    ranges_of(image, row),
                    desired.source_ranges.networks,
                    "{}",
                    dump(image)
                );
                let node_allowed = desired.source_ranges.node_allowed.contains(&family);
                assert_eq!(has(frontend_flags::NODE_ALLOWED), node_allowed);
            } else {
                assert_eq!(row.source_ranges, 0, "{}", dump(image));
            }
        }
    }

    /// Checks that no id, region or row is in use.
    fn check_empty(&mut self) {
        assert_eq!(dump(&self.image()), "");
        assert!(self.installer.services.is_empty() && self.installer.ports.is_empty());
        assert!(self.installer.claims.is_empty() && self.installer.waiting.is_empty());
        assert!(self.installer.vips.is_empty() && self.installer.retries.is_empty());
        assert!(self.installer.absences.is_empty() && self.installer.orphans.is_empty());
        let sets = self.installer.tables.ranges_mut();
        assert_eq!(sets.written().count(), 0);
        let n_sets = std::iter::from_fn(|| sets.allocate(BTreeSet::new()).ok()).count();
        assert_eq!(n_sets, 2 * CAPACITY.services as usize - 1);
        let tables = &mut self.installer.tables;
        for family in Family::ALL {
            assert_eq!(
                tables.backends(family).available(),
                CAPACITY.backends as usize - 1
            );
        }
        let all = Region {
            base: 0,
            length: CAPACITY.slots,
        };
        assert_eq!(tables.regions_mut().allocate(CAPACITY.slots as usize), Some(all));
        let ids = std::iter::from_fn(|| tables.allocate_service()).count();
        assert_eq!(ids, CAPACITY.services as usize - 1);
    }
}

fn restored(maps: &FaultyMaps<FakeMaps>) -> Installer {
    Installer::restore(&maps.image().unwrap(), maps.capacity(), ABSENCE)
}

fn check_row(image: &MapImage, port: &DesiredPort, frontend: &DesiredFrontend) {
    let family = Family::of(frontend.key.address());
    let row = image.frontends.get(&frontend.key).unwrap();
    assert_eq!(
        (row.flags & !frontend_flags::NODE_ALLOWED, row.affinity_seconds),
        (frontend.flags, port.affinity_seconds)
    );
    let backends = || {
        port.backends
            .iter()
            .filter(|backend| Family::of(backend.address.ip()) == family)
    };
    let expected = |chosen: fn(&DesiredBackend) -> bool| -> Vec<_> {
        backends()
            .filter(|backend| chosen(backend))
            .map(|backend| (backend.address, backend.local))
            .collect()
    };
    let found = |region: Region, is_named: fn(&Backend) -> bool| -> Vec<_> {
        let slots = (region.base..region.base + region.length).map(|index| image.slots[&index]);
        slots
            .map(|slot| {
                let backend = image.backends(family)[&slot.backend];
                assert_eq!(
                    (backend.generation, backend.state),
                    (slot.generation, BackendState::Active)
                );
                assert_eq!(backend.service, row.service);
                assert!(is_named(&backend), "{backend:?}");
                (SocketAddr::new(backend.address, backend.port), backend.local)
            })
            .collect()
    };
    assert_eq!(
        found(row.cluster, |backend| backend.in_cluster),
        expected(|backend| backend.in_cluster),
        "{}",
        dump(image)
    );
    assert_eq!(
        found(row.local, |backend| backend.in_local),
        expected(|backend| backend.in_local),
        "{}",
        dump(image)
    );
    let named = match frontend.external_policy() {
        None => Vec::new(),
        Some(TrafficPolicy::Cluster) => expected(|backend| backend.in_cluster),
        Some(TrafficPolicy::Local) => expected(|backend| backend.in_local),
    };
    let addresses: Vec<SocketAddr> = named.iter().map(|(address, _)| *address).collect();
    let table = maglev::table(&addresses)
        .into_iter()
        .map(|position| named[position as usize]);
    assert!(
        found(row.maglev, |_| true).into_iter().eq(table),
        "{}",
        dump(image)
    );
}

fn check_ranges(image: &MapImage, ranges: &SourceRanges, frontend: &DesiredFrontend) {
    let family = Family::of(frontend.key.address());
    let row = image.frontends.get(&frontend.key).unwrap();
    let is_filtered = ranges.filter(frontend.kind, family);
    assert_eq!(row.source_ranges != 0, is_filtered, "{}", dump(image));
    let node_allowed = row.flags & frontend_flags::NODE_ALLOWED != 0;
    assert_eq!(node_allowed, is_filtered && ranges.node_allowed.contains(&family));
    if is_filtered {
        assert_eq!(ranges_of(image, row), ranges.networks, "{}", dump(image));
    }
}

/// The networks of the set that a row names.
fn ranges_of(image: &MapImage, row: &Frontend) -> BTreeSet<Cidr> {
    let ranges = image.source_ranges.iter();
    let named = ranges.filter(|(set, _)| *set == row.source_ranges);
    named.map(|(_, network)| *network).collect()
}

/// Checks that the maps are consistent after each operation of a log.
fn check_prefixes(log: &[MapOp]) {
    let mut maps = FakeMaps::new(CAPACITY);
    for operation in log {
        maps.apply(operation).unwrap();
        assert_eq!(maps.inconsistency(), None, "after {operation:?}");
    }
}

/// The live backend rows of both families.
fn live_rows(image: &MapImage) -> Vec<(BackendId, Backend)> {
    let rows = Family::ALL.into_iter().flat_map(|family| image.backends(family));
    let live = rows.filter(|(_, row)| row.state != BackendState::Gone);
    live.map(|(id, row)| (*id, *row)).collect()
}

proptest! {
    #[test]
    fn an_absence_within_the_grace_period_changes_nothing(
        history in history(),
        number in 0..5_u8,
        missing in prop::collection::btree_set(0..8_u8, 0..8),
        milliseconds in 0..5000_u64,
        restart: bool,
    ) {
        let mut bench = Bench::new(CAPACITY, 0, 0);
        let mut services = BTreeMap::new();
        for (number, desired) in history {
            match &desired {
                Some(desired) => services.insert(number, desired.clone()),
                None => services.remove(&number),
            };
            bench.set(number, desired);
        }
        bench.settle();
        let before = live_rows(&bench.image());
        let Some(whole) = services.get(&number).cloned() else {
            return Ok(());
        };
        let missing: BTreeSet<SocketAddr> = missing.into_iter().map(endpoint).collect();
        let mut less = whole.clone();
        for port in &mut less.ports {
            port.backends.retain(|backend| backend.leaving || !missing.contains(&backend.address));
        }
        bench.set(number, Some(less.clone()));
        bench.check();
        if restart {
            services.insert(number, less);
            bench = Bench::restart(bench.maps, &services);
            bench.check();
        }
        bench.now += Duration::from_millis(milliseconds);
        bench.installer.tick(&mut bench.maps, bench.now);
        bench.set(number, Some(whole));
        prop_assert_eq!(live_rows(&bench.image()), before);
        bench.check();
        check_prefixes(&bench.maps.inner.log);
    }

    #[test]
    fn maps_match_the_services_and_nothing_leaks(history in history(), percent in 0..40_u64, seed: u64) {
        let mut bench = Bench::new(CAPACITY, percent, seed);
        let mut services = BTreeMap::new();
        for (number, desired) in history {
            match &desired {
                Some(desired) => services.insert(number, desired.clone()),
                None => services.remove(&number),
            };
            bench.set(number, desired);
            if percent == 0 {
                bench.check();
            }
        }
        bench.settle();
        bench.check();
        check_prefixes(&bench.maps.inner.log);
        for number in services.into_keys() {
            bench.set(number, None);
        }
        bench.settle();
        bench.check_empty();
    }

    #[test]
    fn a_new_agent_writes_only_the_difference(
        before in history(),
        after in history(),
        cut: prop::sample::Index,
        seed: u64,
    ) {
        // The old agent dies after a random write.
        let mut bench = Bench::new(CAPACITY, 0, seed);
        let mut services = BTreeMap::new();
        for (number, desired) in before {
            bench.set(number, desired);
        }
        let written = bench.maps.inner.log;
        let mut maps = FakeMaps::new(CAPACITY);
        for operation in &written[..cut.index(written.len() + 1)] {
            maps.apply(operation).unwrap();
        }
        for (number, desired) in after {
            match desired {
                Some(desired) => services.insert(number, desired),
                None => services.remove(&number),
            };
        }
        let mut bench = Bench::restart(FaultyMaps::new(maps, 10, seed), &services);
        bench.settle();
        bench.check();
        check_prefixes(&bench.maps.inner.log);

        let n_written = bench.maps.inner.log.len();
        let mut bench = Bench::restart(bench.maps, &services);
        prop_assert_eq!(&bench.maps.inner.log[n_written..], &[]);
        bench.check();

        for number in services.into_keys() {
            bench.set(number, None);
        }
        bench.settle();
        bench.check_empty();
    }

    #[test]
    fn corrupted_maps_are_repaired(history in history(), damage in prop::collection::vec((0..8_u8, any::<prop::sample::Index>()), 1..5)) {
        let mut bench = Bench::new(CAPACITY, 0, 0);
        for (number, desired) in history {
            bench.set(number, desired);
        }
        let before = dump(&bench.image());
        for (kind, index) in damage {
            self::damage(bench.maps.inner.rows_mut(), kind, index);
        }
        let image = bench.image();
        let repaired = bench.installer.repair(&image, &mut bench.maps);
        prop_assert_eq!(repaired.errors, Vec::<String>::new());
        prop_assert_eq!(dump(&bench.image()), before);
        bench.check();
        let image = bench.image();
        prop_assert_eq!(bench.installer.repair(&image, &mut bench.maps).faults(), 0);
        bench.settle();
        bench.check();
    }

    #[test]
    fn a_new_agent_starts_with_corrupted_maps(history in history(), damage in prop::collection::vec((0..8_u8, any::<prop::sample::Index>()), 1..5)) {
        let mut bench = Bench::new(CAPACITY, 0, 0);
        let mut services = BTreeMap::new();
        for (number, desired) in history {
            match &desired {
                Some(desired) => services.insert(number, desired.clone()),
                None => services.remove(&number),
            };
            bench.set(number, desired);
        }
        for (kind, index) in damage {
            self::damage(bench.maps.inner.rows_mut(), kind, index);
        }
        let mut bench = Bench::restart(bench.maps, &services);
        let image = bench.image();
        bench.installer.repair(&image, &mut bench.maps);
        bench.settle();
        bench.check();
    }
}

fn damage(rows: &mut MapImage, kind: u8, index: prop::sample::Index) {
    let key = (!rows.frontends.is_empty()).then(|| *index.get(&rows.frontends.keys().collect::<Vec<_>>()));
    let key = key.copied();
    match (kind, key) {
        (0, Some(key)) => {
            rows.frontends.remove(&key);
        }
        (1, Some(key)) => {
            let row = rows.frontends.get_mut(&key).unwrap();
            row.cluster.base += 1;
            row.service += 1;
        }
        (2, _) => {
            let key = FrontendKey::Port(vip(200), 1, Protocol::Udp);
            rows.frontends.insert(
                key,
                lb_common::layout::Frontend {
                    service: 9,
                    ..Default::default()
                },
            );
        }
        (3, _) if !rows.slots.is_empty() => {
            let base = **index.get(&rows.slots.keys().collect::<Vec<_>>());
            rows.slots.insert(
                base,
                lb_common::layout::Slot {
                    backend: 7,
                    generation: 7,
                },
            );
        }
        (4, _) if !rows.backends4.is_empty() => {
            let id = **index.get(&rows.backends4.keys().collect::<Vec<_>>());
            rows.backends4.get_mut(&id).unwrap().state = BackendState::Draining;
        }
        (5, _) => {
            let address = endpoint(201).ip();
            let state = BackendState::Active;
            let row = Backend {
                address,
                port: 1,
                state,
                local: false,
                in_cluster: true,
                in_local: false,
                generation: 3,
                service: 2,
            };
            rows.backends4.insert(90, row);
        }
        (6, _) if !rows.source_ranges.is_empty() => {
            let row = *index.get(&rows.source_ranges.iter().collect::<Vec<_>>());
            rows.source_ranges.remove(&row.clone());
        }
        (7, _) => {
            rows.source_ranges.insert((3, "192.0.2.0/24".parse().unwrap()));
            rows.source_ranges
                .insert((u32::MAX, "192.0.2.0/24".parse().unwrap()));
        }
        _ => {}
    }
}

fn one_port(frontends: &[(u8, u8)], backends: impl IntoIterator<Item = u8>) -> DesiredService {
    let backends = backends.into_iter().map(|number| (number, 1)).collect();
    service(vec![(0, frontends.iter().copied().collect(), backends)], 0)
}

fn failure(bench: &Bench, number: u8) -> String {
    let name = name(number);
    bench
        .installer
        .service(&name)
        .unwrap()
        .failure
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn a_service_that_does_not_fit_is_rejected_and_the_error_names_the_option() {
    let full = |capacity: Capacity, flag: &str| {
        let mut bench = Bench::new(capacity, 0, 0);
        bench.set(0, Some(one_port(&[(0, 0)], [0, 1, 3])));
        let before = (dump(&bench.image()), bench.maps.inner.log.len());
        bench.set(1, Some(one_port(&[(1, 0)], [4, 6, 7])));
        assert_eq!(
            (dump(&bench.image()), bench.maps.inner.log.len()),
            before,
            "{flag}"
        );
        assert!(
            failure(&bench, 1).contains(flag),
            "{:?} must contain {flag}",
            failure(&bench, 1)
        );
        assert_eq!(failure(&bench, 0), "");
        assert_eq!(bench.installer.fault_since(), None);
        // Other Services give their room back.
        bench.set(0, None);
        bench.settle();
        bench.check();
        assert_eq!(failure(&bench, 1), "");
    };
    full(
        Capacity {
            frontends: 3,
            ..CAPACITY
        },
        "--max-frontends",
    );
    full(Capacity { slots: 5, ..CAPACITY }, "--max-slots");
    full(
        Capacity {
            backends: 6,
            ..CAPACITY
        },
        "--max-backends",
    );
    full(
        Capacity {
            services: 2,
            ..CAPACITY
        },
        "--max-services",
    );
}

/// A NodePort of a Service with `externalTrafficPolicy: Cluster`.
fn node_port(backends: impl IntoIterator<Item = u8>) -> DesiredService {
    let backends = backends.into_iter().map(|number| (number, 1)).collect();
    service(vec![(1, [(0, 0), (1, 0)].into(), backends)], 0)
}

#[test]
fn frontends_of_a_port_share_one_maglev_table() {
    let slots = 2 + 251;
    let mut bench = Bench::new(Capacity { slots, ..CAPACITY }, 0, 0);
    bench.set(0, Some(node_port([0, 1])));
    bench.check();
    // A table in use is never modified, and there is no room for a second one.
    bench.set(0, Some(node_port([0])));
    assert!(
        failure(&bench, 0).contains("--max-slots"),
        "{}",
        failure(&bench, 0)
    );
    let image = bench.image();
    let lengths: Vec<u32> = image.frontends.values().map(|row| row.maglev.length).collect();
    assert_eq!(lengths, [251, 251, 0, 0]);
}

#[test]
fn a_full_frontends_map_accepts_a_replaced_frontend() {
    let mut bench = Bench::new(
        Capacity {
            frontends: 3,
            ..CAPACITY
        },
        0,
        0,
    );
    bench.set(0, Some(one_port(&[(0, 0), (0, 1)], [0])));
    bench.set(0, Some(one_port(&[(0, 0), (0, 2)], [0])));
    bench.check();
}

#[test]
fn ids_are_reused_after_the_grace_period_with_a_new_generation() {
    let mut bench = Bench::new(CAPACITY, 0, 0);
    bench.installer.grace = Duration::ZERO;
    bench.set(0, Some(one_port(&[(0, 0)], [0])));
    bench.set(0, Some(one_port(&[(0, 0)], [1])));
    let image = bench.image();
    assert_eq!(image.backends4[&1].state, BackendState::Gone);
    assert_eq!(image.backends4[&2].address, endpoint(1).ip());
    let key = FrontendKey::Port(vip(0), 80, Protocol::Tcp);
    assert_eq!(image.frontends[&key].cluster.base, 1);

    bench.now += tables::GRACE;
    bench.set(0, Some(one_port(&[(0, 0)], [3])));
    let image = bench.image();
    assert_eq!(
        (image.backends4[&1].address, image.backends4[&1].generation),
        (endpoint(3).ip(), 2)
    );
    assert_eq!(image.frontends[&key].cluster.base, 0);
}

/// The id, generation, state and service id of the first endpoint's row.
fn first_backend(bench: &Bench) -> (BackendId, u32, BackendState, ServiceId) {
    let image = bench.image();
    let of_first = |row: &&Backend| SocketAddr::new(row.address, row.port) == endpoint(0);
    let mut rows = image.backends4.iter().filter(|(_, row)| of_first(row));
    let (id, row) = rows.next_back().unwrap();
    (*id, row.generation, row.state, row.service)
}

/// Different ways in which the first endpoint of Service 0 can be missing.
fn absences() -> [(&'static str, Option<DesiredService>); 4] {
    let port = |name, backends: &[u8]| -> RandomPort {
        let backends = backends.iter().map(|number| (*number, 1)).collect();
        (name, [(0, name)].into(), backends)
    };
    [
        ("the endpoint", Some(service(vec![port(0, &[1, 3])], 0))),
        ("all endpoints", Some(service(vec![port(0, &[])], 0))),
        ("its port", Some(service(vec![port(1, &[1])], 0))),
        ("the Service", None),
    ]
}

#[test]
fn a_backend_that_comes_back_in_time_keeps_its_row() {
    for (what, desired) in absences() {
        for restarts in [false, true] {
            let mut bench = Bench::new(CAPACITY, 0, 0);
            let whole = one_port(&[(0, 0)], [0, 1]);
            bench.set(0, Some(whole.clone()));
            let before = first_backend(&bench);
            assert_eq!(before.2, BackendState::Active);
            bench.set(0, desired.clone());
            let absent = (before.0, before.1, BackendState::Absent, before.3);
            assert_eq!(first_backend(&bench), absent, "{what}");
            bench.now += ABSENCE - Duration::from_millis(1);
            bench.installer.tick(&mut bench.maps, bench.now);
            assert_eq!(first_backend(&bench), absent, "{what}");
            if restarts {
                // The grace period starts again.
                let services = desired.iter().map(|desired| (0, desired.clone())).collect();
                bench = Bench::restart(bench.maps, &services);
                bench.now += ABSENCE - Duration::from_millis(1);
                bench.installer.tick(&mut bench.maps, bench.now);
                assert_eq!(first_backend(&bench), absent, "{what}");
            }
            bench.set(0, Some(whole));
            assert_eq!(first_backend(&bench), before, "{what}, restart: {restarts}");
            bench.check();
            bench.settle();
            assert_eq!(first_backend(&bench), before, "{what}, restart: {restarts}");
            check_prefixes(&bench.maps.inner.log);
        }
    }
}

#[test]
fn a_backend_that_does_not_come_back_in_time_is_removed() {
    for (what, desired) in absences() {
        for restarts in [false, true] {
            let mut bench = Bench::new(CAPACITY, 0, 0);
            let whole = one_port(&[(0, 0)], [0, 1]);
            bench.set(0, Some(whole.clone()));
            let before = first_backend(&bench);
            bench.set(0, desired.clone());
            if restarts {
                let services = desired.iter().map(|desired| (0, desired.clone())).collect();
                bench = Bench::restart(bench.maps, &services);
            }
            assert!(
                bench.installer.next_due().unwrap() <= bench.now + ABSENCE,
                "{what}"
            );
            bench.now += ABSENCE;
            bench.installer.tick(&mut bench.maps, bench.now);
            let gone = (before.0, before.1, BackendState::Gone, before.3);
            assert_eq!(first_backend(&bench), gone, "{what}, restart: {restarts}");
            bench.settle();
            bench.set(0, Some(whole));
            let (_, generation, state, _) = first_backend(&bench);
            assert_eq!((generation, state), (2, BackendState::Active), "{what}");
            bench.set(0, None);
            bench.settle();
            bench.check_empty();
        }
    }
}

#[test]
fn backends_that_do_not_come_back_are_removed_immediately() {
    let whole = || one_port(&[(0, 0)], [0, 1]);
    let mut leaving = whole();
    leaving.ports[0].backends[0].leaving = true;
    let mut released = one_port(&[(0, 0)], [1]);
    released.ports[0].released = vec![endpoint(0)];
    let without = || Some(one_port(&[(0, 0)], [1]));
    let ended = BTreeSet::from([endpoint(0).ip()]);
    let nobody = BTreeSet::new();
    for (what, first, then, ended) in [
        ("terminating endpoint", &leaving, without(), &nobody),
        ("terminating endpoint, removed Service", &leaving, None, &nobody),
        ("released endpoint", &whole(), Some(released), &nobody),
        ("ended Pod", &whole(), without(), &ended),
        ("ended Pod, removed Service", &whole(), None, &ended),
    ] {
        let mut bench = Bench::new(CAPACITY, 0, 0);
        bench.set(0, Some(first.clone()));
        let then = then.map(Arc::new);
        bench
            .installer
            .set(&name(0), then, ended, &mut bench.maps, bench.now);
        assert_eq!(first_backend(&bench).2, BackendState::Gone, "{what}");
    }
    // The end of a Pod does not affect a backend that is still listed.
    let mut bench = Bench::new(CAPACITY, 0, 0);
    bench.set(0, Some(leaving));
    bench.installer.set(
        &name(0),
        Some(Arc::new(whole())),
        &ended,
        &mut bench.maps,
        bench.now,
    );
    bench.set(0, without());
    assert_eq!(first_backend(&bench).2, BackendState::Absent);
}

#[test]
fn without_a_grace_period_no_backend_is_absent() {
    for (what, desired) in absences() {
        let mut bench = Bench::new(CAPACITY, 0, 0);
        bench.installer.grace = Duration::ZERO;
        bench.set(0, Some(one_port(&[(0, 0)], [0, 1])));
        bench.set(0, desired);
        assert_eq!(first_backend(&bench).2, BackendState::Gone, "{what}");
    }
}

#[test]
fn absent_backends_are_removed_if_others_need_room() {
    let capacity = |backends, services| Capacity {
        backends,
        services,
        ..CAPACITY
    };
    for (what, capacity) in [("backends", capacity(5, 30)), ("service ids", capacity(100, 2))] {
        for owner in [0, 1] {
            let mut bench = Bench::new(capacity, 0, 0);
            bench.set(0, Some(one_port(&[(0, 0)], [0, 1, 3])));
            bench.set(0, None);
            assert_eq!(first_backend(&bench).2, BackendState::Absent);
            // It needs the rows of the absent backends. It is also tested as another port of the
            // same Service.
            let other = service(
                vec![(2, [(1, 1)].into(), [4, 6, 7].map(|number| (number, 1)).into())],
                0,
            );
            bench.set(owner, Some(other));
            assert_eq!(first_backend(&bench).2, BackendState::Gone, "{what}");
            bench.now += tables::GRACE;
            bench.installer.tick(&mut bench.maps, bench.now);
            bench.check();
        }
    }
}

#[test]
fn writes_follow_the_documented_order() {
    let mut bench = Bench::new(CAPACITY, 0, 0);
    let balanced = |frontends: &[(u8, u8)], backends: [u8; 2], network| DesiredService {
        source_ranges: source_ranges(&[network].into(), false),
        ..service(
            vec![(
                1,
                frontends.iter().copied().collect(),
                backends.map(|number| (number, 1)).into(),
            )],
            0,
        )
    };
    bench.set(0, Some(balanced(&[(0, 0), (0, 1)], [0, 1], 0)));
    bench.maps.inner.log.clear();
    bench.set(0, Some(balanced(&[(0, 0)], [1, 3], 1)));
    let names: Vec<&str> = bench
        .maps
        .inner
        .log
        .iter()
        .map(|operation| match operation {
            MapOp::SetBackend { backend, .. } if backend.state == BackendState::Absent => "absent",
            MapOp::SetBackend { .. } => "backend",
            MapOp::SetSlots { .. } => "slots",
            MapOp::SetFrontend { .. } => "frontend",
            MapOp::DeleteFrontend { .. } => "delete",
            MapOp::AddSourceRange { .. } => "range",
            MapOp::DeleteSourceRange { .. } => "delete range",
            MapOp::SetName { .. } | MapOp::DeleteName { .. } => "name",
        })
        .collect();
    let written = ["range", "backend", "slots", "slots", "frontend"];
    assert_eq!(names[..5], written);
    // The wildcard row comes last.
    assert_eq!(names[5..], ["frontend", "delete", "absent", "delete range"]);
}

#[test]
fn retry_delays_double_up_to_a_maximum() {
    assert_eq!(pause(0), RETRY_FIRST);
    assert_eq!(pause(1), 2 * RETRY_FIRST);
    assert_eq!(pause(u32::MAX), RETRY_LAST);
}

#[test]
fn fault_since_returns_the_time_of_the_first_fault() {
    let mut bench = Bench::new(CAPACITY, 100, 0);
    assert_eq!(bench.installer.fault_since(), None);
    let first = bench.now;
    bench.set(0, Some(one_port(&[(0, 0)], [0])));
    for _ in 0..3 {
        bench.now += RETRY_LAST;
        bench.installer.tick(&mut bench.maps, bench.now);
        assert_eq!(bench.installer.fault_since(), Some(first));
    }
    bench.set(1, Some(one_port(&[(1, 0)], [1])));
    assert_eq!(bench.installer.fault_since(), Some(first));

    let mut sound = Bench::new(CAPACITY, 0, 0);
    sound.set(0, Some(one_port(&[(0, 0)], [0])));
    assert_eq!(sound.installer.fault_since(), None);
}

#[test]
fn usage_matches_the_contents_of_the_maps() {
    let mut bench = Bench::new(CAPACITY, 0, 0);
    bench.set(0, Some(one_port(&[(0, 0), (0, 1)], [0, 1, 3])));
    bench.set(1, Some(one_port(&[(1, 0)], [4])));
    let (image, usage) = (bench.image(), bench.installer.usage());
    let of_family = |family| {
        let keys = image.frontends.keys();
        keys.filter(|key| Family::of(key.address()) == family).count()
    };
    assert_eq!(usage.frontends, Family::ALL.map(of_family));
    assert_eq!(usage.backends, [image.backends4.len(), image.backends6.len()]);
    assert_eq!(usage.slots, image.slots.len());
    assert_eq!(usage.services, image.names.len());
    assert!(usage.slots > 0 && usage.services == 2, "{usage:?}");
}
