//! One watch: lists one kind, watches it, and sends changes.

use std::fmt::Debug;
use std::ops::Range;
use std::pin::pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::{DeserializeGuard, Status};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::pace::{End, Pace};
use super::report::Report;
use crate::object::{Change, Object, ObjectKind, ObjectReference, trim_endpoints, trim_node};

/// The page size of a list.
const PAGE: u32 = 500;
/// The range of a watch's timeout in seconds, as in the Go client. It is random so that not all
/// nodes restart their watches at the same time.
const WATCH_SECONDS: Range<u32> = 300..600;
/// A server sends an event or a bookmark about every minute. After this much silence the agent
/// closes the watch.
const SILENCE: Duration = Duration::from_secs(180);

/// A kind that the agent watches.
pub(super) trait Watched:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static
{
    /// The kind.
    const KIND: ObjectKind;

    /// Converts the object.
    fn into_object(self) -> Object;
}

impl Watched for Service {
    const KIND: ObjectKind = ObjectKind::Service;

    fn into_object(self) -> Object {
        Object::Service(Box::new(self))
    }
}

impl Watched for EndpointSlice {
    const KIND: ObjectKind = ObjectKind::EndpointSlice;

    fn into_object(mut self) -> Object {
        trim_endpoints(&mut self);
        Object::EndpointSlice(Box::new(self))
    }
}

impl Watched for Node {
    const KIND: ObjectKind = ObjectKind::Node;

    fn into_object(mut self) -> Object {
        trim_node(&mut self);
        Object::Node(Box::new(self))
    }
}

/// A watch on one kind.
pub(super) struct Watch<K> {
    api: Api<DeserializeGuard<K>>,
    /// The label selector.
    selector: Option<String>,
    changes: mpsc::Sender<Change>,
    has_listed: bool,
    /// The last known resource version. If `None`, a list is needed.
    version: Option<String>,
    pace: Pace,
    report: Report,
}

impl<K: Watched> Watch<K> {
    /// Creates a watch on the selected objects; `place` describes where the API server is.
    pub(super) fn new(
        client: Client,
        place: String,
        selector: Option<String>,
        changes: mpsc::Sender<Change>,
    ) -> Self {
        Self {
            api: Api::all(client),
            selector,
            changes,
            has_listed: false,
            version: None,
            pace: Pace::new(),
            report: Report::new(K::KIND, place),
        }
    }

    /// Sends changes indefinitely.
    pub(super) async fn run(mut self) {
        loop {
            let end = self.follow().await.unwrap_or_else(|end| end);
            self.rest(end).await;
        }
    }

    /// Sends changes until the server does not have the kind (404), or does not allow the agent to
    /// read it (403).
    pub(super) async fn run_until_refused(&mut self) -> Box<Status> {
        loop {
            match self.follow().await.unwrap_or_else(|end| end) {
                End::Failed(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => return status,
                end => self.rest(end).await,
            }
        }
    }

    /// Whether a complete list was sent.
    pub(super) fn has_listed(&self) -> bool {
        self.has_listed
    }

    /// Reports how an attempt ended, and waits until the next one.
    async fn rest(&mut self, end: End) {
        tracing::debug!(kind = %K::KIND, ?end, "a watch ended");
        match &end {
            End::Closed => {}
            End::Expired => self.version = None,
            End::Failed(error) => self.report.failed(error),
        }
        sleep(self.pace.pause(&end, Instant::now())).await;
    }

    /// Lists if needed, then watches until the watch ends.
    async fn follow(&mut self) -> Result<End, End> {
        if let Some(version) = &self.version {
            self.check_version(version).await?;
        }
        let version = match &self.version {
            Some(version) => version.clone(),
            None => self.list().await?,
        };
        let parameters = WatchParams {
            label_selector: self.selector.clone(),
            timeout: Some(fastrand::u32(WATCH_SECONDS)),
            ..WatchParams::default()
        };
        let events = self.api.watch(&parameters, &version).await.map_err(end)?;
        self.pace.opened(Instant::now());
        self.report.opened();
        self.receive(pin!(events)).await
    }

    /// Checks, at the cost of one object, that the server has reached the known resource version. A
    /// server whose store was restored from a backup is behind it, and a watch from that version
    /// would stay silent.
    async fn check_version(&self, version: &str) -> Result<(), End> {
        let page = self.api.list(&self.list_parameters(1)).await.map_err(end)?;
        let current = page.metadata.resource_version.unwrap_or_default();
        if is_behind(&current, version) {
            self.report.went_back(version, &current);
            return Err(End::Expired);
        }
        Ok(())
    }

    /// Sends a complete list. Returns its resource version.
    async fn list(&mut self) -> Result<String, End> {
        let mut objects = Vec::new();
        let mut parameters = self.list_parameters(PAGE);
        loop {
            let page = self.api.list(&parameters).await.map_err(end)?;
            objects.extend(page.items.into_iter().filter_map(decoded));
            parameters.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if parameters.continue_token.is_none() {
                let version = page.metadata.resource_version.unwrap_or_default();
                tracing::info!(kind = %K::KIND, objects = objects.len(), "got the complete list from the API server");
                self.version = Some(version.clone());
                let kind = K::KIND;
                self.send(Change::Replace { kind, objects }).await;
                self.has_listed = true;
                return Ok(version);
            }
        }
    }

    fn list_parameters(&self, limit: u32) -> ListParams {
        ListParams {
            label_selector: self.selector.clone(),
            limit: Some(limit),
            ..ListParams::default()
        }
    }

    async fn receive(
        &mut self,
        mut events: impl Stream<Item = kube::Result<WatchEvent<DeserializeGuard<K>>>> + Unpin,
    ) -> Result<End, End> {
        loop {
            let Ok(Some(event)) = timeout(SILENCE, events.next()).await else {
                return Ok(End::Closed);
            };
            let version = match event.map_err(|error| self.broken(error))? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    let version = object.resource_version();
                    if let Some(object) = decoded(object) {
                        self.send(Change::Apply(object)).await;
                    }
                    version
                }
                WatchEvent::Deleted(object) => {
                    self.send(Change::Delete(reference(&object))).await;
                    object.resource_version()
                }
                WatchEvent::Bookmark(bookmark) => Some(bookmark.metadata.resource_version),
                WatchEvent::Error(status) => {
                    // The event is lost.
                    self.version = None;
                    return Err(end(kube::Error::Api(status)));
                }
            };
            self.version = version
                .filter(|version| !version.is_empty())
                .or(self.version.take());
        }
    }

    /// Returns the end of a watch that failed with an error.
    fn broken(&mut self, error: kube::Error) -> End {
        match error {
            // An event is lost.
            error @ (kube::Error::SerdeError(_) | kube::Error::Api(_)) => {
                self.version = None;
                end(error)
            }
            // Connections break in normal operation. If the server is down, the next request fails,
            // too.
            _ => End::Closed,
        }
    }

    async fn send(&self, change: Change) {
        // If the receiver is closed, the source ends.
        let _ = self.changes.send(change).await;
    }
}

/// Classifies the error of an attempt.
fn end(error: kube::Error) -> End {
    match &error {
        kube::Error::Api(status) if status.code == 410 || is_version_too_large(status) => End::Expired,
        _ => End::Failed(error),
    }
}

fn is_version_too_large(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes
        .into_iter()
        .any(|cause| cause.reason == "ResourceVersionTooLarge")
}

/// Versions of one server are comparable if they are numbers.
fn is_behind(current: &str, known: &str) -> bool {
    let number = |version: &str| version.parse::<u128>().ok();
    number(current)
        .zip(number(known))
        .is_some_and(|(current, known)| current < known)
}

/// Converts the object to the form that the agent stores. If it cannot be decoded, the stored
/// object stays unchanged. Its deletion still works.
fn decoded<K: Watched>(object: DeserializeGuard<K>) -> Option<Object> {
    let reference = reference(&object);
    match object.0 {
        Ok(mut object) => {
            // The managed fields are a large part of an object.
            object.meta_mut().managed_fields = None;
            Some(object.into_object())
        }
        Err(error) => {
            let namespace = Some(reference.namespace.as_str()).filter(|namespace| !namespace.is_empty());
            let path = K::url_path(&(), namespace);
            tracing::warn!(
                %reference,
                %error,
                "cannot decode {path}/{}: the change is not followed; `kubectl get --raw` shows what the API server sent",
                reference.name
            );
            None
        }
    }
}

fn reference<K: Watched>(object: &DeserializeGuard<K>) -> ObjectReference {
    ObjectReference {
        kind: K::KIND,
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
    }
}
