//! What the operator is told of a watch.

use super::root_cause;
use crate::object::Kind;

/// Tells, once each time, that the API is lost or recovered.
pub(super) struct Report {
    kind: Kind,
    place: String,
    /// What is wrong, as far as another cause is worth another line.
    cause: Option<String>,
}

impl Report {
    /// All is well as far as is known.
    pub(super) fn new(kind: Kind, place: String) -> Self {
        Self {
            kind,
            place,
            cause: None,
        }
    }

    /// The server has accepted the watch.
    pub(super) fn opened(&mut self) {
        if self.cause.take().is_some() {
            tracing::info!("watching {}s at {} again", self.kind, self.place);
        }
    }

    /// A try has failed; the watch goes on by itself.
    pub(super) fn failed(&mut self, error: &kube::Error) {
        let (cause, text) = match error {
            // The message may differ each time.
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
            "cannot watch {kind}s at {place}, keeping what is known and retrying: {remedy}: {text}"
        );
    }

    /// The server's versions are behind ours.
    pub(super) fn went_back(&self, known: &str, current: &str) {
        let (kind, place) = (self.kind, &self.place);
        tracing::warn!(
            "the API server at {place} went back from resource version {known} to {current}, as one does that was \
             restored from a backup: listing {kind}s again, nothing else is needed"
        );
    }
}

/// The causes around the innermost repeat it or say less, but for the one that names the file.
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
        kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => "is it an API server that answers there?",
        _ => {
            "does it run, does this node reach it, and is its certificate of the authority that the agent was given?"
        }
    }
}
