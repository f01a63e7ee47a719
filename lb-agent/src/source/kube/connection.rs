//! The way to the API server for one watch: notices when it is lost and recovered.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::runtime::watcher;
use kube::{Client, Config};

use super::KubeError;
use crate::object::Kind;

/// A request that is not answered for so long will not be. Longer than the silence between two events of a watch.
const READ_TIMEOUT: Duration = Duration::from_secs(360);

/// A client that tells the operator, once each time, that the API is lost or recovered.
///
/// The watcher does not show when a watch that it resumes is accepted, so the answers are observed underneath it.
pub(super) struct Connection {
    kind: Kind,
    config: Config,
    state: Mutex<State>,
}

struct State {
    client: Client,
    lost: Option<Loss>,
}

/// Why a request failed, as far as another reason is worth another line in the log.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// The API server refused, with this HTTP status.
    Refused(u16),
    /// No answer that makes sense.
    Unreachable,
}

impl Connection {
    /// Prepares a connection.
    pub(super) fn new(kind: Kind, mut config: Config) -> Result<Self, KubeError> {
        config.read_timeout.get_or_insert(READ_TIMEOUT);
        // The watch retries, with a longer patience and after a word to the operator; and 504 may mean that a resource
        // version is unknown, which no retry cures.
        config.default_retry = false;
        // Else the time that a connection spent unused counts, too.
        config.reset_reader_on_write = true;
        let client = Client::try_from(config.clone()).map_err(|source| KubeError::Client {
            url: config.cluster_url.to_string(),
            source: Box::new(source),
        })?;
        Ok(Self {
            kind,
            config,
            state: Mutex::new(State { client, lost: None }),
        })
    }

    /// The client for the watcher.
    pub(super) fn client(self: &Arc<Self>) -> Client {
        let connection = self.clone();
        let service = tower::service_fn(move |request| {
            let connection = connection.clone();
            async move {
                let client = connection.lock().client.clone();
                let response = client.send(request).await?;
                match response.status() {
                    status if status.is_success() => connection.answered(),
                    status if status.as_u16() == 401 => connection.renew(),
                    _ => {}
                }
                Ok::<_, kube::Error>(response)
            }
        });
        Client::new(service, self.config.default_namespace.clone())
    }

    /// Notes that the watch failed; the watch goes on by itself.
    pub(super) fn failed(&self, error: &watcher::Error) {
        let (loss, reason) = match error {
            // Ordinary: what was watched is too old, or a connection ended. If the next request fails, too, it is lost.
            watcher::Error::WatchError(status) if status.code == 410 => return,
            watcher::Error::WatchFailed(error) => {
                tracing::debug!(kind = %self.kind, error = root_cause(error), "a watch broke off");
                return;
            }
            watcher::Error::InitialListFailed(kube::Error::Api(status))
            | watcher::Error::WatchStartFailed(kube::Error::Api(status))
            | watcher::Error::WatchError(status) => (Loss::Refused(status.code), status.message.clone()),
            error => (Loss::Unreachable, root_cause(error)),
        };
        if self.lock().lost.replace(loss) == Some(loss) {
            return;
        }
        let (kind, url) = (self.kind, &self.config.cluster_url);
        let remedy = match loss {
            Loss::Refused(403) => ": allow the agent's service account to list and watch them",
            Loss::Refused(401) => ": is the agent's token valid?",
            Loss::Refused(_) | Loss::Unreachable => "",
        };
        tracing::warn!("cannot watch {kind}s at {url}, keeping what is known and retrying{remedy}: {reason}");
    }

    fn answered(&self) {
        if self.lock().lost.take().is_some() {
            tracing::info!("watching {}s at {} again", self.kind, self.config.cluster_url);
        }
    }

    /// Makes a new client, which reads the token and the certificates from their files again. A client reads the
    /// token about once a minute: too late for one that was rotated early, never if the clock was set back.
    fn renew(&self) {
        match Client::try_from(self.config.clone()) {
            Ok(client) => self.lock().client = client,
            Err(error) => {
                tracing::debug!(kind = %self.kind, error = root_cause(&error), "cannot read the credentials again");
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The innermost error: those around it repeat it or say less.
fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
