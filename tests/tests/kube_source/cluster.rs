//! An API server, the agent's source, and the changes and log lines of the source.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeStatus, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Config;
use lb_agent::logging::FILTER;
use lb_agent::object::{Change, Object};
use lb_agent::source::kube::run;
use lb_tests::api_server::ApiServer;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc::{self, Receiver};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing_subscriber::fmt::MakeWriter;

/// Much longer than any step takes, including retries, so that a timeout means that the step never
/// happens. Shorter than the interval at which a client reads its token again by itself.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

/// Short, so that tests do not wait long.
const RETRY_UNAVAILABLE: Range<Duration> = Duration::from_millis(10)..Duration::from_millis(20);

pub(super) const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
pub(super) const HEADLESS: &str = "service.kubernetes.io/headless";

/// An API server, the agent's source, and the changes and log lines of the source.
pub(super) struct Cluster {
    pub(super) server: ApiServer,
    pub(super) token_file: PathBuf,
    pub(super) changes: Receiver<Change>,
    pub(super) source: JoinHandle<()>,
    pub(super) log: Log,
    _log: tracing::subscriber::DefaultGuard,
    _directory: TempDir,
}

impl Cluster {
    /// An API server without any requests yet.
    pub(super) async fn server() -> (ApiServer, TempDir) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("token"), "secret").unwrap();
        (ApiServer::start("secret").await.unwrap(), directory)
    }

    pub(super) fn start(server: ApiServer, directory: TempDir) -> Self {
        let config = server.config(&directory.path().join("token")).unwrap();
        Self::start_with(config, server, directory)
    }

    /// The same with another configuration of the client.
    pub(super) fn start_with(config: Config, server: ApiServer, directory: TempDir) -> Self {
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(log.clone())
            .with_ansi(false);
        let guard = tracing::subscriber::set_default(subscriber.with_env_filter(FILTER).finish());
        let token_file = directory.path().join("token");
        let (sender, changes) = mpsc::channel(10);
        let source = tokio::spawn(async { run(config, RETRY_UNAVAILABLE, sender).await.unwrap() });
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

    /// Starts with Services, and receives the first lists.
    pub(super) async fn with_services(names: &[&str]) -> Self {
        let (server, directory) = Self::server().await;
        for name in names {
            server.apply(&service(name, 80)).unwrap();
        }
        let mut cluster = Self::start(server, directory);
        let services: Vec<_> = names
            .iter()
            .map(|name| format!("Service default/{name}:80"))
            .collect();
        let services = format!("replace Service [{}]", services.join(", "));
        assert_eq!(
            cluster.next_sorted(4).await,
            [
                "replace EndpointSlice []",
                "replace Node []",
                &services,
                "replace ServiceCIDR []"
            ]
        );
        cluster
    }

    pub(super) async fn next(&mut self) -> String {
        let change = timeout(TIMEOUT, self.changes.recv()).await;
        let change = change.unwrap_or_else(|_| panic!("no change; log:\n{}", self.log.text()));
        show(&change.expect("the source ended"))
    }

    /// Returns the next changes, sorted: the order between kinds is not defined.
    pub(super) async fn next_sorted(&mut self, n: usize) -> Vec<String> {
        let mut changes = Vec::new();
        for _ in 0..n {
            changes.push(self.next().await);
        }
        changes.sort();
        changes
    }

    /// Changes a Service and asserts that this is the next change: nothing else was reported
    /// before.
    pub(super) async fn expect_alive(&mut self, name: &str, port: i32) {
        self.server.apply(&service(name, port)).unwrap();
        assert_eq!(self.next().await, format!("apply Service default/{name}:{port}"));
    }

    pub(super) async fn wait_for_log(&self, text: &str) {
        let mut written = self.log.written.subscribe();
        let found = timeout(TIMEOUT, written.wait_for(|_| self.log.text().contains(text)))
            .await
            .is_ok();
        assert!(found, "no {text:?} in the log:\n{}", self.log.text());
    }

    /// Waits until every kind has been watched this many times.
    pub(super) async fn wait_for_watches(&self, n_watches: usize) {
        self.wait_for_requests(|requests| {
            ["services", "endpointslices", "nodes", "servicecidrs"]
                .into_iter()
                .all(|plural| {
                    let watches = requests.iter().filter(|request| is_watch(request, plural));
                    watches.count() >= n_watches
                })
        })
        .await;
    }

    pub(super) async fn wait_for_requests(&self, expected: impl Fn(&[String]) -> bool) {
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
pub(super) struct Log {
    pub(super) text: Arc<Mutex<Vec<u8>>>,
    pub(super) written: tokio::sync::watch::Sender<()>,
}

impl Log {
    pub(super) fn text(&self) -> String {
        String::from_utf8(self.text.lock().unwrap().clone()).unwrap()
    }

    pub(super) fn count(&self, text: &str) -> usize {
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

pub(super) fn show(change: &Change) -> String {
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
        Object::ServiceCidr(cidr) => {
            let cidrs = cidr.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
            let cidrs: Vec<&str> = cidrs.map(String::as_str).collect();
            format!("{} {}", object.reference(), cidrs.join(","))
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

pub(super) fn metadata(name: &str, labels: &[(&str, &str)]) -> ObjectMeta {
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

pub(super) fn labelled_service(name: &str, port: i32, labels: &[(&str, &str)]) -> Service {
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

pub(super) fn service(name: &str, port: i32) -> Service {
    labelled_service(name, port, &[])
}

pub(super) fn slice(name: &str, labels: &[(&str, &str)]) -> EndpointSlice {
    EndpointSlice {
        metadata: metadata(name, labels),
        address_type: "IPv4".to_owned(),
        ..EndpointSlice::default()
    }
}

pub(super) fn service_cidr(api_version: &str, name: &str, cidrs: &[&str]) -> Value {
    json!({
        "apiVersion": api_version, "kind": "ServiceCIDR", "metadata": {"name": name}, "spec": {"cidrs": cidrs},
    })
}

pub(super) fn node(name: &str, address: &str) -> Node {
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

/// Whether a request is a watch on a resource.
pub(super) fn is_watch(request: &str, plural: &str) -> bool {
    request.contains(&format!("/{plural}?")) && request.contains("watch=true")
}
