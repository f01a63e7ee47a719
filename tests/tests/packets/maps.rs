//! After the same writes, the kernel's maps and the fake maps have the same contents.

use std::net::IpAddr;

use lb_agent::maps::testing::FakeMaps;
use lb_agent::maps::{Backend, BackendState, FrontendKey, MapOp, Maps as _, Protocol};
use lb_agent::network::Cidr;
use lb_common::layout::{Frontend, Region, Slot, frontend_flags};
use lb_tests::packet::datapath;

fn slots(n: u32) -> Vec<Slot> {
    let slot = |backend| Slot {
        backend,
        generation: 7,
    };
    (0..n).map(slot).collect()
}

fn address(number: u32) -> IpAddr {
    match number % 2 {
        0 => IpAddr::V4((0x0a60_0000 + number).into()),
        _ => IpAddr::V6((0xfd00_u128 << 112 | u128::from(number)).into()),
    }
}

fn frontend(number: u32, cluster: Region, maglev: Region) -> MapOp {
    let value = Frontend {
        service: number,
        flags: frontend_flags::OUTSIDE_LOCAL,
        cluster,
        maglev,
        affinity_seconds: 30,
        ..Frontend::default()
    };
    MapOp::SetFrontend {
        key: FrontendKey::Port(address(number), 80, Protocol::Sctp),
        value,
    }
}

fn backend(id: u32) -> MapOp {
    let backend = Backend {
        address: address(id),
        port: 8080,
        state: [
            BackendState::Gone,
            BackendState::Active,
            BackendState::Draining,
            BackendState::Absent,
        ][id as usize % 4],
        local: id.is_multiple_of(5),
        in_cluster: id.is_multiple_of(7),
        in_local: id.is_multiple_of(11),
        generation: id,
        service: id,
    };
    MapOp::SetBackend { id, backend }
}

/// Overlapping networks in two sets, some of them deleted again.
fn source_ranges() -> Vec<MapOp> {
    let networks = [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.2.3/32",
        "::/0",
        "fd00::/8",
        "fd00::1/128",
    ];
    let networks = networks.map(|text| text.parse().expect("a network"));
    let add = [1, 2, u32::MAX].into_iter().flat_map(|set| {
        let add = move |network| MapOp::AddSourceRange { set, network };
        networks.into_iter().map(add)
    });
    // One range is deleted twice, as after an error.
    let delete = [1, 3, 5, 1].map(|index| MapOp::DeleteSourceRange {
        set: 2,
        network: networks[index],
    });
    add.chain(delete).collect()
}

#[test]
fn a_full_source_range_map_names_its_option() {
    let Some(mut datapath) = datapath() else { return };
    let capacity = datapath.maps.capacity().source_ranges;
    let mut add = |number: u32| {
        let address = IpAddr::V4((0x0a00_0000 + number).into());
        let network = Cidr::host(address);
        datapath.maps.apply(&MapOp::AddSourceRange { set: 1, network })
    };
    for number in 0..capacity {
        add(number).expect("it fits");
    }
    let error = add(capacity).expect_err("it does not fit").to_string();
    assert!(error.contains("--max-source-ranges"), "{error}");
}

#[test]
fn writes_are_read_back() {
    let Some(mut datapath) = datapath() else { return };
    let capacity = datapath.maps.capacity();
    let mut fake = FakeMaps::new(capacity);
    let region = |base, length| Region { base, length };
    // Regions at the start, at the end and in between; shared by several rows; never written.
    let (first, table) = (region(0, 5), region(5, 32_749));
    let (last, unwritten) = (region(capacity.slots - 3, 3), region(40_000, 3));
    let mut operations = vec![
        MapOp::SetName {
            service: 3,
            name: "default/web/http/TCP".to_owned(),
        },
        MapOp::SetSlots {
            base: unwritten.base,
            slots: vec![Slot::default(); 3],
        },
        frontend(0, Region::default(), Region::default()),
        frontend(1, first, table),
        frontend(2, first, table),
        frontend(3, last, first),
        frontend(4, unwritten, Region::default()),
        frontend(5, unwritten, Region::default()),
        MapOp::DeleteFrontend {
            key: FrontendKey::Port(address(5), 80, Protocol::Sctp),
        },
    ];
    operations.extend([first, table, last].map(|region| MapOp::SetSlots {
        base: region.base,
        slots: slots(region.length),
    }));
    operations.extend((1..200).map(backend));
    operations.extend(source_ranges());
    for operation in &operations {
        datapath.maps.apply(operation).expect("the kernel accepts it");
        fake.apply(operation).expect("the fake accepts it");
    }
    assert_eq!(
        datapath.maps.image().expect("the maps can be read"),
        fake.image().expect("the maps can be read")
    );
}

/// Few slots are written by system calls, many through mapped memory. Neither changes the
/// neighbouring slots.
#[test]
fn writing_slots_does_not_change_their_neighbours() {
    let Some(mut datapath) = datapath() else { return };
    let size = datapath.maps.capacity().slots;
    for length in [1, 63, 64, 65, 511, 512, 513, 2000] {
        // Slots are 8 bytes: 512 in a page of 4 KiB.
        for base in [1, 447, 448, 511, 512, 1000, size - 1 - length] {
            let around = Region {
                base: base - 1,
                length: length + 2,
            };
            let mut expected = vec![Slot::default(); length as usize + 2];
            let mut write = |base, slots: &[Slot]| {
                let slots = slots.to_vec();
                let operation = MapOp::SetSlots { base, slots };
                datapath.maps.apply(&operation).expect("the kernel accepts it");
            };
            write(around.base, &expected);
            write(base, &slots(length));
            expected[1..=length as usize].copy_from_slice(&slots(length));
            let row = frontend(0, around, Region::default());
            datapath.maps.apply(&row).expect("the kernel accepts it");
            let image = datapath.maps.image().expect("the maps can be read");
            let found: Vec<Slot> = image.slots.into_values().collect();
            assert_eq!(found, expected, "{length} slots from {base} on");
        }
    }
}

#[test]
fn writes_beyond_the_last_slot_are_rejected() {
    let Some(mut datapath) = datapath() else { return };
    let size = datapath.maps.capacity().slots;
    for (base, length) in [(size - 1, 2), (size - 99, 100), (u32::MAX - 50, 100), (size, 64)] {
        let beyond = MapOp::SetSlots {
            base,
            slots: slots(length),
        };
        let error = datapath
            .maps
            .apply(&beyond)
            .expect_err("it does not fit")
            .to_string();
        assert!(
            error.contains(&format!("write {length} slots from {base} on")),
            "{error}"
        );
    }
    let base = size - 1;
    // A damaged row does not prevent the rest from being read.
    for (number, length) in [(0, 2), (1, u32::MAX)] {
        let damaged = Region { base, length };
        let operation = frontend(number, damaged, damaged);
        datapath.maps.apply(&operation).expect("the kernel accepts it");
    }
    let image = datapath.maps.image().expect("the maps can be read");
    assert_eq!(image.slots.into_iter().collect::<Vec<_>>(), [(base, slots(1)[0])]);
}
