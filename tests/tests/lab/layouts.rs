//! An agent that finds the pins of another layout takes over what is attached, and removes
//! everything of that layout.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::{Array, HashMap, MapData};
use aya::programs::links::{FdLink, PinnedLink};
use lb_agent::datapath::pins::Pins;
use lb_common::layout::LAYOUT_VERSION;
use lb_common::map::{self, FamilySpecs as _};
use lb_common::net::Address6;
use lb_tests::lab::cluster::{HTTP, options, vips};
use lb_tests::lab::{
    Agent, AgentOptions, Attached, Cluster, Machine, SocketLb, Xdp, XdpPeer, require_privileges, wait_for,
};

const OLDER: u32 = LAYOUT_VERSION - 1;
const NEWER: u32 = LAYOUT_VERSION + 1;

const PATIENCE: Duration = Duration::from_secs(30);

/// What the agent logs about open connections.
const LOST: &str = "connections that are open through Services are lost";

fn layout(root: &Path, version: u32) -> PathBuf {
    root.join(format!("v{version}"))
}

/// Renames the agent's pins to those of another layout.
fn become_another(root: &Path, version: u32) {
    fs::rename(layout(root, LAYOUT_VERSION), layout(root, version)).unwrap();
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// The kernel's id of each link, by the name of its pin. A link that was taken over keeps its id.
fn links(directory: &Path) -> BTreeMap<String, u32> {
    let id = |name: &String| {
        let link = FdLink::from(PinnedLink::from_pin(directory.join(name)).unwrap());
        link.info().unwrap().id()
    };
    names(directory)
        .into_iter()
        .map(|name| {
            let id = id(&name);
            (name, id)
        })
        .collect()
}

/// The Pods that new connections of this client reach.
#[track_caller]
fn reached(from: &Machine, to: [IpAddr; 2], port: u16) -> BTreeSet<String> {
    to.into_iter()
        .flat_map(|address| {
            let report = from.http(address, port).count(40).run().unwrap();
            assert!(report.errors.is_empty(), "{address}: {report:?}");
            report.answers.into_keys()
        })
        .collect()
}

/// Asserts that new connections from all clients reach these Pods and no others.
#[track_caller]
fn assert_reach(cluster: &Cluster, mode: &AgentMode, pods: [&str; 2]) {
    let expected = BTreeSet::from(pods.map(str::to_owned));
    let node = &cluster.nodes[0];
    assert_eq!(reached(&cluster.client, vips(), HTTP.port), expected);
    // The node has no route to VIPs.
    if mode.socket_lb != SocketLb::Off {
        assert_eq!(reached(node.host(), vips(), HTTP.port), expected);
    }
    let nodes = node.host().addresses().both();
    assert_eq!(
        reached(&cluster.outside, nodes, HTTP.node_port.unwrap()),
        expected
    );
}

/// How an agent is started.
struct AgentMode {
    socket_lb: SocketLb,
    xdp: Xdp,
    arguments: &'static [&'static str],
}

impl AgentMode {
    const LINKS: [Self; 2] = [
        Self {
            socket_lb: SocketLb::All,
            xdp: Xdp::Native,
            arguments: &[],
        },
        Self {
            socket_lb: SocketLb::Off,
            xdp: Xdp::Generic,
            arguments: &[],
        },
    ];
    const CLSACT: Self = Self {
        socket_lb: SocketLb::All,
        xdp: Xdp::Off,
        arguments: &["--tc=clsact"],
    };

    fn options(&self) -> AgentOptions {
        AgentOptions {
            xdp: Some(self.xdp),
            ..options(self.socket_lb, self.arguments)
        }
    }

    fn attached(&self) -> Attached {
        match self.arguments {
            [] => Attached::TCX,
            _ => Attached::CLSACT,
        }
    }
}

/// A cluster whose agent was started in this mode and was killed. Since then its first Pod has left
/// the Service and a third one was added.
fn abandoned(title: &str, mode: &AgentMode) -> (XdpPeer, Cluster) {
    let mut cluster = Cluster::new(title, &[0, 1]).unwrap();
    let peer = cluster.lab.prepare_for_xdp(&cluster.nodes[0]).unwrap();
    let agent = cluster.nodes[0].start_agent(&mode.options()).unwrap();
    assert_reach(&cluster, mode, ["web-1", "web-2"]);
    agent.kill();
    cluster.remove_manifest(&cluster.servers[0]).unwrap();
    cluster.add_server(1).unwrap();
    (peer, cluster)
}

/// Starts the agent and asserts that it alone decides afterwards. Returns how often it logged lost
/// connections.
#[track_caller]
fn assert_takes_over(cluster: &Cluster, mode: &AgentMode) -> usize {
    let node = &cluster.nodes[0];
    let agent = node.start_agent(&mode.options()).unwrap();
    assert_reach(cluster, mode, ["web-2", "web-3"]);
    let own = format!("v{LAYOUT_VERSION}");
    assert_eq!(names(node.pin_path()), [own].into());
    for device in [cluster.client.far_device(), "eth0"] {
        let attached = node.host().namespace().attached(device).unwrap();
        assert_eq!(attached, mode.attached(), "{device}");
    }
    agent.log().matches(LOST).count()
}

#[test]
fn links_are_taken_over_in_place() {
    if !require_privileges() {
        return;
    }
    for (mode, version) in AgentMode::LINKS.iter().zip([OLDER, NEWER]) {
        let (_peer, cluster) = abandoned("layout", mode);
        let pins = Pins::new(cluster.nodes[0].pin_path());
        let before = links(&pins.links());
        become_another(pins.root(), version);
        assert_eq!(assert_takes_over(&cluster, mode), 1);
        let mut after = links(&pins.links());
        // The link of the new Pod's device is new, if the Pod is on this node.
        after.retain(|name, _| before.contains_key(name));
        assert_eq!(after, before);
    }
}

#[test]
fn clsact_filters_are_taken_over() {
    if !require_privileges() {
        return;
    }
    let (_peer, cluster) = abandoned("layout-clsact", &AgentMode::CLSACT);
    become_another(cluster.nodes[0].pin_path(), OLDER);
    assert_eq!(assert_takes_over(&cluster, &AgentMode::CLSACT), 1);
}

/// Programs of several agents, attached in another mode than that of the new agent, and a takeover
/// that was interrupted.
#[test]
fn a_takeover_leaves_nothing_of_several_layouts() {
    if !require_privileges() {
        return;
    }
    let [native, generic] = &AgentMode::LINKS;
    for (old, new) in [
        (native, &AgentMode::CLSACT),
        (native, generic),
        (&AgentMode::CLSACT, native),
        (generic, native),
    ] {
        let (_peer, cluster) = abandoned("layouts", old);
        let node = &cluster.nodes[0];
        let root = node.pin_path();
        // A device that is no longer selected, and a device that was deleted with its links.
        become_another(root, OLDER);
        let gone = node.pod("gone").unwrap();
        let agent = node.start_agent(&old.options()).unwrap();
        agent.kill();
        node.host()
            .namespace()
            .ip(&[format!("link delete {}", gone.far_device())])
            .unwrap();
        become_another(root, NEWER);
        let odd = root.join("v99/links");
        fs::create_dir_all(&odd).unwrap();
        fs::create_dir_all(root.join("v98/deep")).unwrap();
        fs::rename(
            layout(root, NEWER).join("maps/FLOWS4"),
            odd.join("7-lb_tc_to_pod"),
        )
        .unwrap();
        // The state after an agent was killed during its takeover.
        let half: Vec<String> = names(&layout(root, NEWER).join("links")).into_iter().collect();
        let own = Pins::new(root).links();
        fs::create_dir_all(&own).unwrap();
        for name in half.iter().step_by(2) {
            fs::rename(layout(root, NEWER).join("links").join(name), own.join(name)).unwrap();
        }
        assert_eq!(assert_takes_over(&cluster, new), 1);
        // The next start has nothing to take over.
        assert_eq!(assert_takes_over(&cluster, new), 0);
    }
}

/// Pins a map at a path.
type Pin<'a> = &'a dyn Fn(&Path);

/// Maps under the name of this layout whose values or number of rows do not match.
#[test]
fn mismatched_maps_are_treated_as_another_layout() {
    if !require_privileges() {
        return;
    }
    let mode = &AgentMode::LINKS[0];
    let other_values = || HashMap::<MapData, u32, u32>::create(4, 0).unwrap();
    let other_rows = || Array::<MapData, u32>::create(4, 0).unwrap();
    let misfits: [(&str, Pin<'_>); 2] = [
        (Address6::FLOWS.name, &|path| other_values().pin(path).unwrap()),
        (map::XDP_DEVICES.name, &|path| other_rows().pin(path).unwrap()),
    ];
    for (name, pin) in misfits {
        let (_peer, cluster) = abandoned("misfit", mode);
        let pins = Pins::new(cluster.nodes[0].pin_path());
        let before = links(&pins.links());
        let path = pins.maps().join(name);
        fs::remove_file(&path).unwrap();
        pin(&path);
        assert_eq!(assert_takes_over(&cluster, mode), 1);
        let mut after = links(&pins.links());
        after.retain(|name, _| before.contains_key(name));
        assert_eq!(after, before);
    }
}

#[test]
fn the_next_agent_completes_an_interrupted_takeover() {
    if !require_privileges() {
        return;
    }
    let mode = &AgentMode::LINKS[0];
    let (_peer, cluster) = abandoned("dying", mode);
    let node = &cluster.nodes[0];
    become_another(node.pin_path(), OLDER);
    let has_begun = |agent: &mut Agent| agent.wait_until_logged(LOST).unwrap();
    let has_moved_a_link = |_: &mut Agent| {
        let own = Pins::new(node.pin_path());
        let moved = || (!own.link_names().unwrap().is_empty()).then_some(());
        wait_for("the first link", PATIENCE, moved).unwrap();
    };
    let moments: [&dyn Fn(&mut Agent); 3] = [&|_| {}, &has_begun, &has_moved_a_link];
    for until in moments {
        let mut agent = node.start_agent_unready(&mode.options()).unwrap();
        until(&mut agent);
        agent.kill();
    }
    // The last agent may have completed the takeover before it was killed.
    assert!(assert_takes_over(&cluster, mode) <= 1);
}

#[test]
fn cleanup_removes_every_layout() {
    if !require_privileges() {
        return;
    }
    for mode in [&AgentMode::LINKS[0], &AgentMode::CLSACT] {
        let (_peer, cluster) = abandoned("cleanup-layouts", mode);
        let node = &cluster.nodes[0];
        become_another(node.pin_path(), OLDER);
        node.agent_command("cleanup", &[]).unwrap();
        assert!(!node.pin_path().exists());
        for device in [cluster.client.far_device(), "eth0"] {
            let attached = node.host().namespace().attached(device).unwrap();
            assert_eq!(attached, Attached::NOTHING, "{device}");
        }
        for vip in vips() {
            let report = node.host().http(vip, HTTP.port).run().unwrap();
            assert_eq!(report.answered(), 0, "{report:?}");
        }
    }
}
