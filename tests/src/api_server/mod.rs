//! A replacement for the Kubernetes API server: it serves lists and watches over TLS like a real
//! one, with failures on request.

mod answer;
mod selector;
mod serve;
mod store;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use kube::Config;
use kube::config::AuthInfo;
use rcgen::CertifiedKey;
use serde::Serialize;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use self::store::Store;

/// UID of the namespace kube-system.
pub const CLUSTER_UID: &str = "0d4ee2c1-4f7e-4d53-8a3b-0c9f3c1b7a55";

/// The server. It stops when it is dropped.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    acceptor: TlsAcceptor,
    listening: Option<JoinHandle<()>>,
}

/// State that the connections share.
struct Shared {
    state: Mutex<State>,
    /// The newest resource version of the store.
    version: watch::Sender<u64>,
    /// Whether answers to requests are held back.
    held: watch::Sender<bool>,
    /// All requests so far, path and query.
    requests: watch::Sender<Vec<String>>,
    signals: broadcast::Sender<Signal>,
}

struct State {
    store: Store,
    token: String,
    forbidden: BTreeSet<String>,
    /// API versions that the server does not have.
    absent: BTreeSet<String>,
    /// The HTTP status with which every request is answered.
    failure: Option<u16>,
}

/// An event for all watches or connections.
#[derive(Clone, Copy, Debug)]
enum Signal {
    /// Watches send a bookmark.
    Bookmark,
    /// Watches end normally.
    EndWatches,
    /// Watches send half an object, then their connections are cut.
    CutWatches,
    /// All connections are closed.
    Close,
}

impl ApiServer {
    /// Starts on an unused port and accepts this token.
    pub async fn start(token: &str) -> anyhow::Result<Self> {
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).context("certificate")?;
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
        let certificate = cert.der().clone();
        let certificate_pem = cert.pem();
        let tls = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let mut server = Self {
            shared: Arc::new(Shared::new(token)),
            address: listener.local_addr()?,
            certificate,
            certificate_pem,
            acceptor: TlsAcceptor::from(Arc::new(tls)),
            listening: None,
        };
        server.listen(listener);
        Ok(server)
    }

    /// The client configuration for the server, with the token in a file.
    pub fn config(&self, token_file: &Path) -> anyhow::Result<Config> {
        let mut config = Config::new(format!("https://{}", self.address).parse()?);
        config.root_cert = Some(vec![self.certificate.to_vec()]);
        config.auth_info = AuthInfo {
            token_file: Some(token_file.to_str().context("name of the token file")?.to_owned()),
            ..AuthInfo::default()
        };
        Ok(config)
    }

    /// Writes a kubeconfig for a program, and the files to which it refers, into a directory.
    pub fn write_kubeconfig(&self, directory: &Path, token: &str) -> anyhow::Result<PathBuf> {
        let certificate = directory.join("ca.pem");
        let token_file = directory.join("token");
        let path = directory.join("kubeconfig");
        std::fs::write(&certificate, &self.certificate_pem).context("certificate")?;
        std::fs::write(&token_file, token).context("token")?;
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": {
                "server": format!("https://{}", self.address),
                "certificate-authority": certificate,
            }}],
            "users": [{"name": "agent", "user": {"tokenFile": token_file}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "agent"}}],
            "current-context": "lab",
        });
        std::fs::write(&path, config.to_string()).context("kubeconfig")?;
        Ok(path)
    }

    /// Creates or changes objects.
    pub fn apply<K: Serialize>(&self, object: &K) -> anyhow::Result<()> {
        self.change(object, Store::apply)
    }

    /// Deletes the object with this kind, namespace and name.
    pub fn delete<K: Serialize>(&self, object: &K) -> anyhow::Result<()> {
        self.change(object, |store, object| store.delete(&object))
    }

    fn change<K: Serialize>(&self, object: &K, change: impl FnOnce(&mut Store, Value)) -> anyhow::Result<()> {
        let object = serde_json::to_value(object)?;
        self.write(|store| change(store, object));
        Ok(())
    }

    /// Makes all resource versions so far too old, as compaction does.
    pub fn expire_versions(&self) {
        self.write(Store::expire);
    }

    /// The newest resource version.
    pub fn version(&self) -> u64 {
        self.shared.lock().store.version()
    }

    /// Restores an earlier version, as from a backup. Watches stay open and are silent until the
    /// store reaches their resource version.
    pub fn restore(&self, version: u64) {
        self.write(|store| store.restore(version));
    }

    fn write(&self, change: impl FnOnce(&mut Store)) {
        let mut state = self.shared.lock();
        change(&mut state.store);
        self.shared.version.send_replace(state.store.version());
    }

    /// Accepts only this token from now on.
    pub fn set_token(&self, token: &str) {
        self.shared.lock().token = token.to_owned();
    }

    /// Sets whether requests for a resource (`services`) get 403.
    pub fn set_forbidden(&self, resource: &str, forbidden: bool) {
        let mut state = self.shared.lock();
        match forbidden {
            true => state.forbidden.insert(resource.to_owned()),
            false => state.forbidden.remove(resource),
        };
    }

    /// Sets whether requests for all resources of an API version (`networking.k8s.io/v1`) get 404.
    pub fn set_absent(&self, api_version: &str, absent: bool) {
        let mut state = self.shared.lock();
        match absent {
            true => state.absent.insert(api_version.to_owned()),
            false => state.absent.remove(api_version),
        };
    }

    /// Answers every request with this HTTP status; `None` ends that.
    pub fn fail_with(&self, status: Option<u16>) {
        self.shared.lock().failure = status;
    }

    /// Sets whether answers to requests are held back.
    pub fn hold_answers(&self, hold: bool) {
        self.shared.held.send_replace(hold);
    }

    /// Sends a bookmark on every watch.
    pub fn send_bookmarks(&self) {
        self.signal(Signal::Bookmark);
    }

    /// Ends every watch as its timeout would.
    pub fn end_watches(&self) {
        self.signal(Signal::EndWatches);
    }

    /// Cuts the connection of every watch in the middle of an object.
    pub fn cut_watches(&self) {
        self.signal(Signal::CutWatches);
    }

    fn signal(&self, signal: Signal) {
        // Fails if there is no connection, which is fine.
        let _ = self.shared.signals.send(signal);
    }

    /// Stops listening and closes all connections.
    pub async fn stop(&mut self) {
        if let Some(listening) = self.listening.take() {
            listening.abort();
            // The port is free once the task has ended.
            let _ = listening.await;
        }
        self.signal(Signal::Close);
    }

    /// Listens again, on the same port.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.stop().await;
        let listener = TcpListener::bind(self.address).await.context("listening again")?;
        self.listen(listener);
        Ok(())
    }

    fn listen(&mut self, listener: TcpListener) {
        self.listening = Some(tokio::spawn(serve::listen(
            listener,
            self.acceptor.clone(),
            self.shared.clone(),
        )));
    }

    /// All requests so far: path and query, decoded. Callers can wait for changes.
    pub fn requests(&self) -> watch::Receiver<Vec<String>> {
        self.shared.requests.subscribe()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(listening) = self.listening.take() {
            listening.abort();
        }
        self.signal(Signal::Close);
    }
}

impl Shared {
    fn new(token: &str) -> Self {
        let store = Store::new();
        Self {
            version: watch::Sender::new(store.version()),
            held: watch::Sender::new(false),
            requests: watch::Sender::default(),
            signals: broadcast::Sender::new(16),
            state: Mutex::new(State {
                store,
                token: token.to_owned(),
                forbidden: BTreeSet::new(),
                absent: BTreeSet::new(),
                failure: None,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
