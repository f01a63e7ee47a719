//! Connections and flows that differ only in the VIP.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::net::SocketAddr;
use std::time::Duration;

use lb_tests::lab::cluster::{ECHO, HTTP, UDP};
use lb_tests::lab::report::TalkEvent;
use lb_tests::lab::{Cluster, Machine, Published, ServicePort, SocketLb, Xdp, require_privileges, wait_for};

const PATIENCE: Duration = Duration::from_secs(10);
/// The client's port, outside the ephemeral port range.
const SOURCE_PORT: u16 = 21_000;

/// One port of the client, two VIPs and a single Pod: both connections and both flows work.
#[test]
fn one_client_port_reaches_one_pod_through_two_vips() {
    if !require_privileges() {
        return;
    }
    let [first, second] = [Published::new("first", 41), Published::new("second", 42)];
    for xdp in [None, Some(Xdp::Generic), Some(Xdp::Native)] {
        let cluster = Cluster::new("shared-port", &[0, 1]).unwrap();
        let _agents = cluster.start_agents(SocketLb::Off, xdp, &[]).unwrap();
        for server in &cluster.servers {
            let ports = [HTTP, UDP, ECHO].map(ServicePort::without_node_port);
            for service in [first, second] {
                cluster.publish(service, &ports, &[server.place()]).unwrap();
            }
            wait_for("the Services' Pod", PATIENCE, || {
                let pods = [first, second].map(|service| {
                    let http = cluster.outside.http(service.addresses()[0], HTTP.port);
                    http.run().unwrap().answers.into_keys().next()
                });
                pods.iter()
                    .all(|pod| pod.as_deref() == Some(server.pod.name()))
                    .then_some(())
            })
            .unwrap();
            for from in [&cluster.outside, &cluster.client] {
                share_a_port(from, first, second);
            }
        }
    }
}

/// Connections that a Pod makes from a chosen port are translated at its device, even if its
/// sockets are translated. Processes of the node have no such device: the kernel sees two
/// connections from one port to one Pod, and the second `connect` fails.
#[test]
fn node_sockets_cannot_reuse_a_port_for_the_same_pod() {
    if !require_privileges() {
        return;
    }
    let [first, second] = [Published::new("first", 41), Published::new("second", 42)];
    let cluster = Cluster::new("shared-sockets", &[0]).unwrap();
    let ports = [HTTP, UDP, ECHO].map(ServicePort::without_node_port);
    for service in [first, second] {
        cluster
            .publish(service, &ports, &[cluster.servers[0].place()])
            .unwrap();
    }
    let _agents = cluster.start_agents(SocketLb::All, None, &[]).unwrap();
    share_a_port(&cluster.client, first, second);
    let host = cluster.nodes[0].host();
    for (index, own) in host.addresses().both().into_iter().enumerate() {
        let [to, other] =
            [first, second].map(|service| SocketAddr::new(service.addresses()[index], ECHO.port));
        let source = SocketAddr::new(own, SOURCE_PORT);
        let mut talk = host.talk_from(source, to).unwrap();
        talk.connected().unwrap();
        let mut refused = host.talk_from(source, other).unwrap();
        let event = refused.next_event().unwrap();
        assert_eq!(
            event,
            TalkEvent::Error("connect: AddrNotAvailable".to_owned()),
            "{own}"
        );
        talk.server().unwrap();
        host.connect(other.ip(), other.port()).unwrap();
    }
}

fn share_a_port(from: &Machine, first: Published, second: Published) {
    for (index, own) in from.addresses().both().into_iter().enumerate() {
        let vips = [first, second].map(|service| service.addresses()[index]);
        let source = SocketAddr::new(own, SOURCE_PORT);
        let mut talks = vips.map(|vip| {
            let to = SocketAddr::new(vip, ECHO.port);
            let mut talk = from.talk_from(source, to).unwrap();
            assert_eq!(talk.connected().unwrap(), (source, to));
            talk
        });
        for _ in 0..2 {
            for talk in &mut talks {
                talk.server().unwrap();
            }
        }
        for vip in [vips, vips].into_iter().flatten() {
            let udp = from.udp(vip, UDP.port).connected();
            let report = udp.source_port(SOURCE_PORT).count(2).run().unwrap();
            assert_eq!(report.answered(), 2, "{vip}: {report:?}");
        }
    }
}
