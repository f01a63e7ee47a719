//! The Kubernetes API as the source, against a stand-in API server.
#![expect(clippy::unwrap_used, reason = "a test panics when something is wrong")]

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeStatus, Pod, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};
use lb_agent::object::{Change, Object};
use lb_agent::source::kube::{KubeOptions, cluster_uid, run};
use lb_tests::api_server::{ApiServer, CLUSTER_UID};
use tempfile::TempDir;
use tokio::sync::mpsc::{self, Receiver};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing_subscriber::fmt::MakeWriter;

/// Far more than anything takes, retries included, so that only what never happens runs into it.
/// Less than the time after which a client reads its token again on its own.
const TIMEOUT: Duration = Duration::from_secs(30);

const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// An API server, the agent's source, and what the source says.
struct Cluster {
    server: ApiServer,
    token_file: PathBuf,
    changes: Receiver<Change>,
    source: JoinHandle<()>,
    log: Log,
    _log: tracing::subscriber::DefaultGuard,
    _directory: TempDir,
}

impl Cluster {
    /// An API server that nobody asked yet.
    async fn server() -> (ApiServer, TempDir) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("token"), "secret").unwrap();
        (ApiServer::start("secret").await.unwrap(), directory)
    }

    fn start(server: ApiServer, directory: TempDir, service_proxy_name: Option<&str>) -> Self {
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(log.clone())
            .with_ansi(false);
        let guard = tracing::subscriber::set_default(subscriber.with_env_filter("lb_agent=info").finish());
        let token_file = directory.path().join("token");
        let options = KubeOptions {
            service_proxy_name: service_proxy_name.map(str::to_owned),
        };
        let (sender, changes) = mpsc::channel(10);
        let config = server.config(&token_file).unwrap();
        let source = tokio::spawn(async { run(config, options, sender).await.unwrap() });
        Self {
            server,
            token_file,
            changes,
            source,
            log,
            _log: guard,
            _directory: directory,
        }
    }

    /// Starts with Services, and takes the first lists.
    async fn with_services(names: &[&str]) -> Self {
        let (server, directory) = Self::server().await;
        for name in names {
            server.apply(&service(name, 80)).unwrap();
        }
        let mut cluster = Self::start(server, directory, None);
        let services: Vec<_> = names
            .iter()
            .map(|name| format!("Service default/{name}:80"))
            .collect();
        let services = format!("replace Service [{}]", services.join(", "));
        assert_eq!(
            cluster.next_sorted(3).await,
            ["replace EndpointSlice []", "replace Node []", &services]
        );
        cluster
    }

    async fn next(&mut self) -> String {
        let change = timeout(TIMEOUT, self.changes.recv()).await;
        let change = change.unwrap_or_else(|_| panic!("no change; log:\n{}", self.log.text()));
        show(&change.expect("the source ended"))
    }

    /// The next changes; the order between kinds is open.
    async fn next_sorted(&mut self, n: usize) -> Vec<String> {
        let mut changes = Vec::new();
        for _ in 0..n {
            changes.push(self.next().await);
        }
        changes.sort();
        changes
    }

    /// Changes a Service and sees the change next: nothing else was reported before.
    async fn expect_alive(&mut self, name: &str, port: i32) {
        self.server.apply(&service(name, port)).unwrap();
        assert_eq!(self.next().await, format!("apply Service default/{name}:{port}"));
    }

    async fn wait_for_log(&self, text: &str) {
        let mut written = self.log.written.subscribe();
        let found = timeout(TIMEOUT, written.wait_for(|_| self.log.text().contains(text)))
            .await
            .is_ok();
        assert!(found, "no {text:?} in the log:\n{}", self.log.text());
    }

    /// Waits until every kind was watched so often.
    async fn wait_for_watches(&self, n_watches: usize) {
        self.wait_for_requests(|requests| {
            ["services", "endpointslices", "nodes"].into_iter().all(|plural| {
                let watches = requests.iter().filter(|request| is_watch(request, plural));
                watches.count() >= n_watches
            })
        })
        .await;
    }

    async fn wait_for_requests(&self, expected: impl Fn(&[String]) -> bool) {
        let mut requests = self.server.requests();
        let found = timeout(TIMEOUT, requests.wait_for(|requests| expected(requests)))
            .await
            .is_ok();
        assert!(
            found,
            "not among the requests:\n{:#?}",
            self.server.requests().borrow()
        );
    }
}

/// A log in memory.
#[derive(Clone, Default)]
struct Log {
    text: Arc<Mutex<Vec<u8>>>,
    written: tokio::sync::watch::Sender<()>,
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.text.lock().unwrap().clone()).unwrap()
    }

    fn count(&self, text: &str) -> usize {
        self.text().matches(text).count()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.lock().unwrap().extend_from_slice(bytes);
        self.written.send_replace(());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn show(change: &Change) -> String {
    let object = |object: &Object| match object {
        Object::Service(service) => {
            let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
            let port = ports.and_then(|ports| ports.first()).map_or(0, |port| port.port);
            format!("{}:{port}", object.reference())
        }
        Object::Node(node) => {
            let status = node.status.iter();
            let addresses = status.flat_map(|status| status.addresses.iter().flatten());
            let addresses: Vec<&str> = addresses.map(|address| address.address.as_str()).collect();
            format!("{} at {}", object.reference(), addresses.join(","))
        }
        _ => object.reference().to_string(),
    };
    match change {
        Change::Apply(applied) => format!("apply {}", object(applied)),
        Change::Delete(reference) => format!("delete {reference}"),
        Change::Replace { kind, objects } => {
            let objects: Vec<_> = objects.iter().map(object).collect();
            format!("replace {kind} [{}]", objects.join(", "))
        }
    }
}

fn metadata(name: &str, labels: &[(&str, &str)]) -> ObjectMeta {
    let labels: BTreeMap<_, _> = labels
        .iter()
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect();
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("default".to_owned()),
        labels: Some(labels),
        ..ObjectMeta::default()
    }
}

fn labelled_service(name: &str, port: i32, labels: &[(&str, &str)]) -> Service {
    let port = ServicePort {
        port,
        ..ServicePort::default()
    };
    Service {
        metadata: metadata(name, labels),
        spec: Some(ServiceSpec {
            ports: Some(vec![port]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn service(name: &str, port: i32) -> Service {
    labelled_service(name, port, &[])
}

fn slice(name: &str, labels: &[(&str, &str)]) -> EndpointSlice {
    EndpointSlice {
        metadata: metadata(name, labels),
        address_type: "IPv4".to_owned(),
        ..EndpointSlice::default()
    }
}

fn node(name: &str, address: &str) -> Node {
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        ..ObjectMeta::default()
    };
    Node {
        metadata,
        status: Some(NodeStatus {
            addresses: Some(vec![NodeAddress {
                type_: "InternalIP".to_owned(),
                address: address.to_owned(),
            }]),
            ..NodeStatus::default()
        }),
        ..Node::default()
    }
}

#[tokio::test]
async fn first_lists_and_changes() {
    let (server, directory) = Cluster::server().await;
    server.apply(&service("web", 80)).unwrap();
    server
        .apply(&labelled_service("foreign", 81, &[(PROXY_NAME, "other")]))
        .unwrap();
    server.apply(&slice("web-1", &[])).unwrap();
    server.apply(&slice("headless-1", &[(HEADLESS, "")])).unwrap();
    server.apply(&node("here", "192.0.2.1")).unwrap();
    server.apply(&node("there", "192.0.2.2")).unwrap();
    let mut cluster = Cluster::start(server, directory, None);
    assert_eq!(
        cluster.next_sorted(3).await,
        [
            "replace EndpointSlice [EndpointSlice default/web-1]",
            "replace Node [Node here at 192.0.2.1, Node there at 192.0.2.2]",
            "replace Service [Service default/web:80]"
        ]
    );
    cluster.expect_alive("web", 82).await;
    cluster.expect_alive("api", 83).await;
    cluster.server.delete(&service("web", 0)).unwrap();
    assert_eq!(cluster.next().await, "delete Service default/web");
    cluster.server.apply(&slice("api-1", &[])).unwrap();
    assert_eq!(cluster.next().await, "apply EndpointSlice default/api-1");
    cluster.server.delete(&slice("api-1", &[])).unwrap();
    assert_eq!(cluster.next().await, "delete EndpointSlice default/api-1");
    cluster.server.apply(&node("there", "192.0.2.3")).unwrap();
    assert_eq!(cluster.next().await, "apply Node there at 192.0.2.3");
    for name in ["here", "there"] {
        cluster.server.delete(&node(name, "")).unwrap();
        assert_eq!(cluster.next().await, format!("delete Node {name}"));
    }
}

#[tokio::test]
async fn asks_for_no_more_than_it_needs() {
    let cluster = Cluster::with_services(&["web"]).await;
    cluster.wait_for_watches(1).await;
    for request in cluster.server.requests().borrow().iter() {
        let (path, selector) = request.split_once('?').unwrap();
        let expected = match path {
            "/api/v1/services" => format!("labelSelector=!{PROXY_NAME}"),
            "/apis/discovery.k8s.io/v1/endpointslices" => format!("labelSelector=!{HEADLESS}"),
            // All of them, of which the others are known by their addresses.
            "/api/v1/nodes" => {
                assert!(!selector.contains("Selector"), "{request}");
                continue;
            }
            other => panic!("{other} needs a right that the agent has not"),
        };
        assert!(selector.contains(&expected), "{request}");
    }
}

#[tokio::test]
async fn lists_come_in_pages() {
    let names: Vec<_> = (1000..2200).map(|number| format!("s{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut cluster = Cluster::with_services(&names).await;
    let pages = |requests: &[String]| {
        requests
            .iter()
            .filter(|request| request.contains("&continue="))
            .count()
    };
    cluster.wait_for_requests(|requests| pages(requests) == 2).await;
    cluster.expect_alive("web", 80).await;
}

#[tokio::test]
async fn managed_fields_are_dropped() {
    let (server, directory) = Cluster::server().await;
    let mut service = service("web", 80);
    service.metadata.managed_fields = Some(vec![ManagedFieldsEntry::default()]);
    server.apply(&service).unwrap();
    let mut cluster = Cluster::start(server, directory, None);
    loop {
        if let Some(Change::Replace { objects, .. }) = timeout(TIMEOUT, cluster.changes.recv()).await.unwrap()
            && let Some(Object::Service(service)) = objects.first()
        {
            assert_eq!(service.metadata.managed_fields, None);
            break;
        }
    }
}

#[tokio::test]
async fn services_of_other_proxies_come_and_go_with_their_label() {
    let mut cluster = Cluster::with_services(&["web"]).await;
    cluster
        .server
        .apply(&labelled_service("web", 80, &[(PROXY_NAME, "other")]))
        .unwrap();
    assert_eq!(cluster.next().await, "delete Service default/web");
    cluster
        .server
        .apply(&labelled_service("web", 81, &[(PROXY_NAME, "other")]))
        .unwrap();
    cluster.expect_alive("web", 82).await;
}

#[tokio::test]
async fn the_owner_of_a_proxy_name_sees_its_services_only() {
    let (server, directory) = Cluster::server().await;
    server.apply(&service("web", 80)).unwrap();
    server
        .apply(&labelled_service("mine", 81, &[(PROXY_NAME, "lb-agent")]))
        .unwrap();
    server
        .apply(&labelled_service("foreign", 82, &[(PROXY_NAME, "other")]))
        .unwrap();
    server.apply(&slice("mine-1", &[])).unwrap();
    let mut cluster = Cluster::start(server, directory, Some("lb-agent"));
    assert_eq!(
        cluster.next_sorted(3).await,
        [
            "replace EndpointSlice [EndpointSlice default/mine-1]",
            "replace Node []",
            "replace Service [Service default/mine:81]"
        ]
    );
    cluster.server.apply(&service("mine", 81)).unwrap();
    assert_eq!(cluster.next().await, "delete Service default/mine");
}

#[tokio::test]
async fn bookmarks_say_where_a_watch_is_resumed() {
    let mut cluster = Cluster::with_services(&["web"]).await;
    cluster.wait_for_watches(1).await;
    // Nothing that the agent sees.
    cluster
        .server
        .apply(&Pod {
            metadata: metadata("pod", &[]),
            ..Pod::default()
        })
        .unwrap();
    cluster.server.expire_versions();
    let version = format!("resourceVersion={}", cluster.server.version());
    cluster.server.send_bookmarks();
    cluster.server.end_watches();
    let resumed = |request: &String| is_watch(request, "services") && request.contains(&version);
    cluster
        .wait_for_requests(|requests| requests.iter().any(resumed))
        .await;
    cluster.expect_alive("web", 81).await;
    assert_eq!(cluster.log.count("WARN"), 0, "{}", cluster.log.text());
}

fn is_watch(request: &str, plural: &str) -> bool {
    request.contains(&format!("/{plural}?")) && request.contains("watch=true")
}

#[tokio::test]
async fn what_vanished_while_versions_expired_is_missing_in_the_new_list() {
    let mut cluster = Cluster::with_services(&["api", "web"]).await;
    cluster.server.stop().await;
    cluster.server.delete(&service("web", 0)).unwrap();
    cluster.server.expire_versions();
    cluster.server.restart().await.unwrap();
    assert_eq!(
        cluster.next_sorted(3).await,
        [
            "replace EndpointSlice []",
            "replace Node []",
            "replace Service [Service default/api:80]"
        ]
    );
    cluster.expect_alive("api", 81).await;
}

#[tokio::test]
async fn versions_of_the_future_are_forgotten() {
    let mut cluster = Cluster::with_services(&["web"]).await;
    let backup = cluster.server.version();
    cluster.expect_alive("lost", 81).await;
    cluster.server.stop().await;
    cluster.server.restore(backup);
    cluster.server.restart().await.unwrap();
    assert_eq!(cluster.next().await, "replace Service [Service default/web:80]");
}

#[tokio::test]
async fn connections_cut_within_an_object_are_resumed() {
    let mut cluster = Cluster::with_services(&["web"]).await;
    for (n_watches, port) in (1..).zip(81..84) {
        // Without a watch there is nothing to cut.
        cluster.wait_for_watches(n_watches).await;
        cluster.server.cut_watches();
        cluster.expect_alive("web", port).await;
    }
    assert_eq!(cluster.log.count("WARN"), 0, "{}", cluster.log.text());
}

#[tokio::test]
async fn an_outage_is_reported_once() {
    let mut cluster = Cluster::with_services(&["web"]).await;
    cluster.server.stop().await;
    for kind in ["Services", "EndpointSlices", "Nodes"] {
        cluster
            .wait_for_log(&format!("cannot watch {kind} at https://127.0.0.1:"))
            .await;
    }
    cluster.wait_for_log("Connection refused").await;
    cluster.server.restart().await.unwrap();
    for kind in ["Services", "EndpointSlices", "Nodes"] {
        cluster
            .wait_for_log(&format!("watching {kind} at https://127.0.0.1:"))
            .await;
    }
    cluster.expect_alive("web", 81).await;
    assert_eq!(cluster.log.count("cannot watch"), 3, "{}", cluster.log.text());
    assert_eq!(cluster.log.count(" again"), 3, "{}", cluster.log.text());
}

#[tokio::test]
async fn a_server_that_is_away_at_the_start_is_awaited() {
    let (mut server, directory) = Cluster::server().await;
    server.apply(&node("here", "192.0.2.1")).unwrap();
    server.stop().await;
    let mut cluster = Cluster::start(server, directory, None);
    cluster.wait_for_log("cannot watch Nodes").await;
    cluster.server.restart().await.unwrap();
    assert_eq!(
        cluster.next_sorted(3).await,
        [
            "replace EndpointSlice []",
            "replace Node [Node here at 192.0.2.1]",
            "replace Service []"
        ]
    );
}

#[tokio::test]
async fn slow_answers_are_awaited() {
    let (server, directory) = Cluster::server().await;
    server.hold_answers(true);
    let mut cluster = Cluster::start(server, directory, None);
    cluster.wait_for_requests(|requests| requests.len() == 3).await;
    cluster.server.hold_answers(false);
    assert_eq!(
        cluster.next_sorted(3).await,
        [
            "replace EndpointSlice []",
            "replace Node []",
            "replace Service []"
        ]
    );
}

#[tokio::test]
async fn a_token_that_changes_on_disk_is_read_again() {
    let mut cluster = Cluster::with_services(&["web"]).await;
    cluster.server.set_token("rotated");
    cluster.server.stop().await;
    cluster.server.restart().await.unwrap();
    cluster.wait_for_log("is the agent's token valid?").await;
    std::fs::write(&cluster.token_file, "rotated").unwrap();
    cluster.wait_for_log("watching Services").await;
    cluster.expect_alive("web", 81).await;
}

#[tokio::test]
async fn what_is_forbidden_is_reported_and_leaves_the_rest() {
    let (server, directory) = Cluster::server().await;
    server.apply(&slice("web-1", &[])).unwrap();
    server.set_forbidden("endpointslices", true);
    let mut cluster = Cluster::start(server, directory, None);
    assert_eq!(
        cluster.next_sorted(2).await,
        ["replace Node []", "replace Service []"]
    );
    cluster
        .wait_for_log("allow the agent's service account to list and watch them")
        .await;
    cluster.wait_for_log("endpointslices is forbidden").await;
    cluster.expect_alive("web", 80).await;
    cluster.server.set_forbidden("endpointslices", false);
    assert_eq!(
        cluster.next().await,
        "replace EndpointSlice [EndpointSlice default/web-1]"
    );
    assert_eq!(cluster.log.count("cannot watch"), 1, "{}", cluster.log.text());
}

#[tokio::test]
async fn an_object_that_cannot_be_decoded_does_not_stop_the_watch() {
    let mut cluster = Cluster::with_services(&["web"]).await;
    let strange = serde_json::json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"ports": [{"port": "abc"}]},
    });
    cluster.server.apply(&strange).unwrap();
    cluster.wait_for_log("cannot decode").await;
    cluster.wait_for_log("Service default/web").await;
    cluster.expect_alive("api", 81).await;
    cluster.server.delete(&strange).unwrap();
    assert_eq!(cluster.next().await, "delete Service default/web");
}

#[tokio::test]
async fn ends_with_its_receiver() {
    let cluster = Cluster::with_services(&[]).await;
    drop(cluster.changes);
    timeout(TIMEOUT, cluster.source).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_cluster_is_known_by_its_uid() {
    let (server, directory) = Cluster::server().await;
    let config = server.config(&directory.path().join("token")).unwrap();
    let ask = || timeout(TIMEOUT, cluster_uid(config.clone()));
    assert_eq!(ask().await, Ok(Some(CLUSTER_UID.to_owned())));
    server.set_forbidden("namespaces", true);
    assert_eq!(ask().await, Ok(None));
}
