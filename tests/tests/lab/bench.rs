//! The parts of the benchmarks measure what they claim to measure. Tests do not judge the speed.

use std::net::SocketAddr;

use lb_tests::bench::load::{self, LoadGenerator, Mode, Order, Sample};
use lb_tests::lab::{Lab, require_privileges};

const MILLISECONDS: u32 = 20;

fn assert_is_plausible(sample: &Sample, order: &Order) {
    assert_eq!(
        (sample.failures, &sample.failure),
        (0, &None),
        "{order:?}: {sample:?}"
    );
    assert!(sample.operations > 0, "{order:?}: {sample:?}");
    assert!(
        sample.elapsed >= u64::from(MILLISECONDS) * 1_000_000,
        "{order:?}: {sample:?}"
    );
    assert!(
        0 < sample.p50 && sample.p50 <= sample.p99 && sample.p99 <= sample.elapsed,
        "{order:?}: {sample:?}"
    );
    // The CPU time of the lab includes that of the server.
    assert!(
        0 < sample.client_cpu && sample.client_cpu < sample.lab_cpu,
        "{order:?}: {sample:?}"
    );
}

#[test]
fn the_load_generator_measures_pods_without_a_service() {
    if !require_privileges() {
        return;
    }
    let lab = Lab::new("load").unwrap();
    let node = lab.node("node-1").unwrap();
    let client = node.pod("client").unwrap();
    let pods = ["web-1", "web-2"].map(|name| node.pod(name).unwrap());
    let _servers = pods.each_ref().map(|pod| load::serve(pod).unwrap());
    let mut generator = LoadGenerator::start(&client).unwrap();
    for mode in Mode::ALL {
        for threads in [1, 3] {
            let port = mode.role().bare_port();
            let to = pods
                .each_ref()
                .map(|pod| SocketAddr::from((pod.addresses().ipv4, port)));
            let order = Order {
                mode,
                to: to.into(),
                threads,
                milliseconds: MILLISECONDS,
                cgroups: vec![node.cgroup().to_owned()],
            };
            assert_is_plausible(&generator.measure(&order).unwrap(), &order);
        }
    }
}

#[test]
fn the_load_generator_reports_connection_errors() {
    if !require_privileges() {
        return;
    }
    let lab = Lab::new("load").unwrap();
    let node = lab.node("node-1").unwrap();
    let [client, pod] = ["client", "web-1"].map(|name| node.pod(name).unwrap());
    let mut generator = LoadGenerator::start(&client).unwrap();
    let order = Order {
        mode: Mode::Connect,
        to: vec![(pod.addresses().ipv4, 8080).into()],
        threads: 1,
        milliseconds: MILLISECONDS,
        cgroups: vec![node.cgroup().to_owned()],
    };
    let error = generator.measure(&order).unwrap_err().to_string();
    assert!(error.contains("Connection refused"), "{error}");
}
