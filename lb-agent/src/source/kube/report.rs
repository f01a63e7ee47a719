//! What the agent logs about a watch.

use super::root_cause;
use crate::object::ObjectKind;

/// Logs once when the API server becomes unusable for a watch, and once when it recovers.
pub(super) struct Report {
    kind: ObjectKind,
    place: String,
    /// The current error; an error with the same cause is not logged again. `None` if there is no
    /// error.
    cause: Option<String>,
}

impl Report {
    /// Starts without an error.
    pub(super) fn new(kind: ObjectKind, place: String) -> Self {
        Self {
            kind,
            place,
            cause: None,
        }
    }

    /// The server has accepted the watch: logs the recovery if there was an error.
    pub(super) fn opened(&mut self) {
        if self.cause.take().is_some() {
            tracing::info!("watching {}s at {} again", self.kind, self.place);
        }
    }

    /// An attempt has failed. The watch itself continues to retry.
    pub(super) fn failed(&mut self, error: &kube::Error) {
        let (cause, text) = match error {
            // The message may differ each time, so it is not part of the cause.
            kube::Error::Api(status) => (
                format!("{} {}", status.code, status.reason),
                status.message.clone(),
            ),
            error => (root_cause(error), told(error)),
        };
        if self.cause.as_ref() == Some(&cause) {
            return;
        }
        self.cause = Some(cause);
        let (kind, place, remedy) = (self.kind, &self.place, remedy(error));
        tracing::warn!(
            "cannot watch {kind}s at {place}, keeping the known objects and retrying: {remedy}: {text}"
        );
    }

    /// The server's resource version is lower than the known one.
    pub(super) fn went_back(&self, known: &str, current: &str) {
        let (kind, place) = (self.kind, &self.place);
        tracing::warn!(
            "the API server at {place} went back from resource version {known} to {current}, for example because it was \
             restored from a backup: listing {kind}s again, nothing else is needed"
        );
    }
}

/// Returns the text of the innermost error, except for authentication errors, whose outer error
/// names the file.
fn told(error: &kube::Error) -> String {
    match error {
        kube::Error::Auth(error) => error.to_string(),
        error => root_cause(error),
    }
}

fn remedy(error: &kube::Error) -> &'static str {
    match error {
        kube::Error::Api(status) => match status.code {
            401 => "is the agent's token valid? Renew it, or correct the kubeconfig",
            403 => "allow the agent's service account to list and watch them",
            404 => "is this the address of an API server?",
            _ => "see what the API server logs",
        },
        kube::Error::Auth(_) => "correct the token file, or the credentials in the kubeconfig",
        kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => "is this the address of an API server?",
        _ => {
            "is it running, can this node reach it, and is its certificate signed by the authority that the agent knows?"
        }
    }
}
