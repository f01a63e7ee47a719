//! The device watcher against a real kernel, in dedicated network namespaces that end with their
//! threads.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests, too")]

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use lb_agent::devices::{DeviceArguments, DeviceOptions, DeviceView, Role, primary_addresses, watch};
use lb_agent::network::Family;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;
use tokio::sync::watch::{Receiver, Sender, channel};

const TIMEOUT: Duration = Duration::from_secs(20);

/// A network namespace that lives as long as this value.
struct Namespace {
    /// The thread inside the namespace; `ip` accepts its id as the name of the namespace.
    thread: i32,
    release: mpsc::Sender<()>,
    handle: Option<thread::JoinHandle<()>>,
}

impl Namespace {
    fn new() -> Self {
        let (release, released) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let handle = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(gettid().as_raw()).unwrap();
            // This also returns when the sender is dropped.
            let _ = released.recv();
        });
        Self {
            thread: told.recv().unwrap(),
            release,
            handle: Some(handle),
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.release.send(());
        if let Some(handle) = self.handle.take() {
            let _ = handle.join();
        }
    }
}

/// Runs `ip` in the namespace of the calling thread.
#[track_caller]
fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
}

struct Watched {
    view: Receiver<DeviceView>,
    options: Sender<DeviceOptions>,
}

impl Watched {
    async fn start() -> Self {
        let (options, receiver) = channel(DeviceOptions::default());
        let view = watch(receiver).await.unwrap();
        Self { view, options }
    }

    #[track_caller]
    fn until(&mut self, what: &str, met: impl FnMut(&DeviceView) -> bool) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let waited = tokio::time::timeout(TIMEOUT, self.view.wait_for(met)).await;
            let met = waited.is_ok();
            drop(waited);
            assert!(
                met,
                "{caller}: timed out waiting for {what}; view: {:#?}",
                *self.view.borrow()
            );
        }
    }
}

fn role(view: &DeviceView, name: &str) -> Option<Role> {
    let mut attachments = view.attachments.values();
    attachments
        .find(|found| found.name == name)
        .map(|found| found.role)
}

fn index(view: &DeviceView, name: &str) -> Option<u32> {
    let mut links = view.snapshot.links.values();
    links.find(|link| link.name == name).map(|link| link.index)
}

/// Runs a scenario in a fresh network namespace. The scenario receives the name of a second
/// namespace for `ip`.
fn scenario<F: Future<Output = ()>>(run: impl FnOnce(i32) -> F + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let scenario = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        // A single thread, because a namespace belongs to a thread.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let other = Namespace::new();
        runtime.block_on(run(other.thread));
    });
    if let Err(panic) = scenario.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn the_view_follows_added_renamed_and_deleted_devices() {
    scenario(|pod| async move {
        ip(&format!("link add veth1 type veth peer name eth0 netns {pod}"));
        let mut watched = Watched::start().await;
        let view = watched.view.borrow().clone();
        assert_eq!(role(&view, "veth1"), Some(Role::Pod), "in the first view");
        assert_eq!(role(&view, "lo"), None);

        ip(&format!("link add veth2 type veth peer name eth1 netns {pod}"));
        watched
            .until("veth2", |view| role(view, "veth2") == Some(Role::Pod))
            .await;

        ip("link set veth2 name cali2");
        watched
            .until("the new name", |view| {
                role(view, "cali2") == Some(Role::Pod) && role(view, "veth2").is_none()
            })
            .await;

        ip("link delete cali2");
        watched
            .until("its removal", |view| role(view, "cali2").is_none())
            .await;
        assert_eq!(role(&watched.view.borrow(), "veth1"), Some(Role::Pod));
    });
}

#[test]
fn a_veth_device_becomes_a_pods_when_its_peer_moves() {
    scenario(|pod| async move {
        let mut watched = Watched::start().await;
        ip("link add veth1 type veth peer name peer1");
        watched
            .until("both ends", |view| index(view, "peer1").is_some())
            .await;
        assert!(watched.view.borrow().attachments.is_empty());
        ip(&format!("link set peer1 netns {pod}"));
        watched
            .until("the Pod", |view| role(view, "veth1") == Some(Role::Pod))
            .await;
        ip(&format!("link set veth1 netns {pod}"));
        watched
            .until("veth1 to leave", |view| index(view, "veth1").is_none())
            .await;
        assert!(watched.view.borrow().attachments.is_empty());
    });
}

#[test]
fn a_device_is_an_uplink_while_it_has_a_default_route() {
    scenario(|outside| async move {
        let mut watched = Watched::start().await;
        ip(&format!(
            "link add uplink type veth peer name eth0 netns {outside}"
        ));
        ip("link set uplink up");
        ip("address add 192.0.2.2/24 dev uplink");
        watched
            .until("uplink with the role of a Pod's device", |view| {
                role(view, "uplink") == Some(Role::Pod)
            })
            .await;
        ip("route add default via 192.0.2.1 dev uplink");
        watched
            .until("uplink", |view| role(view, "uplink") == Some(Role::Network))
            .await;
        let primary = primary_addresses(&watched.view.borrow().snapshot);
        assert_eq!(primary[&Family::V4].to_string(), "192.0.2.2");

        // The kernel sends no event for the route that this removes.
        ip("link set uplink down");
        watched
            .until("the removal of the route", |view| {
                role(view, "uplink") == Some(Role::Pod)
            })
            .await;
        ip("link set uplink up");
        ip("-6 route add default dev uplink");
        watched
            .until("the IPv6 route", |view| {
                role(view, "uplink") == Some(Role::Network)
            })
            .await;
    });
}

#[test]
fn changed_options_take_effect_immediately() {
    scenario(|_| async move {
        ip("link add outer type veth peer name other");
        ip("address add 192.0.2.2/24 dev outer");
        let mut watched = Watched::start().await;
        assert!(watched.view.borrow().attachments.is_empty());

        let options = |globs: &[&str], addresses: &[&str]| {
            let arguments = DeviceArguments {
                network_device: globs.iter().map(|glob| glob.parse().unwrap()).collect(),
                ..DeviceArguments::default()
            };
            let addresses: BTreeSet<_> = addresses.iter().map(|text| text.parse().unwrap()).collect();
            DeviceOptions::new(&arguments, addresses).unwrap()
        };
        watched.options.send(options(&[], &["192.0.2.2"])).unwrap();
        watched
            .until("the node address", |view| {
                role(view, "outer") == Some(Role::Network)
            })
            .await;
        watched.options.send(options(&["oth*"], &["192.0.2.2"])).unwrap();
        watched
            .until("the glob", |view| {
                role(view, "other") == Some(Role::Network) && role(view, "outer").is_none()
            })
            .await;
    });
}

#[test]
fn a_new_device_with_a_reused_index_is_a_new_instance() {
    scenario(|pod| async move {
        let add = format!("link add veth1 index 4711 type veth peer name eth0 netns {pod}");
        ip(&add);
        let mut watched = Watched::start().await;
        let before = watched.view.borrow().attachments[&4711].clone();
        ip("link delete veth1");
        ip(&add);
        watched
            .until("another instance", |view| {
                view.attachments
                    .get(&4711)
                    .is_some_and(|after| after.instance != before.instance)
            })
            .await;
    });
}

#[test]
fn devices_without_ethernet_headers_are_recognized() {
    scenario(|_| async move {
        let mut watched = Watched::start().await;
        ip("link add flannel.1 type vxlan id 1 dstport 8472 local 127.0.0.1");
        ip("link set flannel.1 up");
        ip("tuntap add dev tun0 mode tun");
        ip("link set tun0 up");
        ip("route add default dev tun0");
        watched
            .until("both", |view| {
                role(view, "flannel.1") == Some(Role::Network) && role(view, "tun0") == Some(Role::Network)
            })
            .await;
        let view = watched.view.borrow();
        let ethernet = |name| view.attachments[&index(&view, name).unwrap()].ethernet;
        assert!(!ethernet("tun0"));
        assert!(ethernet("flannel.1"));
    });
}

#[test]
fn hundreds_of_devices_added_at_once_are_all_seen() {
    const COUNT: usize = 300;
    scenario(|pod| async move {
        let mut watched = Watched::start().await;
        let commands: String = (0..COUNT)
            .map(|number| format!("link add veth{number} type veth peer name eth{number} netns {pod}\n"))
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, commands).unwrap();
        // The watcher does not run during this: the buffer of its socket overflows.
        ip(&format!("-batch {}", file.path().display()));
        watched
            .until("all of them", |view| view.attachments.len() == COUNT)
            .await;
    });
}
