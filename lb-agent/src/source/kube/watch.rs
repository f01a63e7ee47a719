//! One watch: from what the API server says about a kind to changes.

use std::fmt::Debug;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::{DeserializeGuard, Status};
use kube::runtime::watcher::{self, DefaultBackoff, Event};
use kube::{Api, Config, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::KubeError;
use super::connection::Connection;
use crate::object::{Change, Kind, Object, ObjectReference, trim_endpoints, trim_node};

/// A kind that is watched.
pub(super) trait Watched:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static
{
    /// The kind.
    const KIND: Kind;

    /// Wraps the object.
    fn into_object(self) -> Object;
}

impl Watched for Service {
    const KIND: Kind = Kind::Service;

    fn into_object(self) -> Object {
        Object::Service(Box::new(self))
    }
}

impl Watched for EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;

    fn into_object(mut self) -> Object {
        trim_endpoints(&mut self);
        Object::EndpointSlice(Box::new(self))
    }
}

impl Watched for Node {
    const KIND: Kind = Kind::Node;

    fn into_object(mut self) -> Object {
        trim_node(&mut self);
        Object::Node(Box::new(self))
    }
}

/// A watch on one kind.
pub(super) struct Watch<K> {
    connection: Arc<Connection>,
    api: Api<DeserializeGuard<K>>,
    selection: watcher::Config,
    changes: mpsc::Sender<Change>,
    /// The list that is being received.
    listing: Vec<Object>,
}

impl<K: Watched> Watch<K> {
    /// Prepares a watch on the selected objects.
    pub(super) fn new(
        config: &Config,
        selection: watcher::Config,
        changes: mpsc::Sender<Change>,
    ) -> Result<Self, KubeError> {
        let connection = Arc::new(Connection::new(K::KIND, config.clone())?);
        Ok(Self {
            api: Api::all(connection.client()),
            connection,
            selection,
            changes,
            listing: Vec::new(),
        })
    }

    /// Sends changes for ever.
    pub(super) async fn run(mut self) {
        let mut backoff = DefaultBackoff::default();
        let mut events = self.events();
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => self.handle(event).await,
                Err(error) => {
                    self.connection.failed(&error);
                    if needs_list(&error) {
                        events = self.events();
                    }
                    // It has no end, and starts over after a time without errors.
                    if let Some(delay) = backoff.next() {
                        tokio::time::sleep(delay).await;
                    }
                }
            }
        }
    }

    fn events(
        &self,
    ) -> impl Stream<Item = watcher::Result<Event<DeserializeGuard<K>>>> + Send + Unpin + use<K> {
        watcher::watcher(self.api.clone(), self.selection.clone()).boxed()
    }

    async fn handle(&mut self, event: Event<DeserializeGuard<K>>) {
        let change = match event {
            Event::Init => {
                self.listing.clear();
                None
            }
            Event::InitApply(object) => {
                self.listing.extend(decoded(object));
                None
            }
            Event::InitDone => Some(self.listed()),
            Event::Apply(object) => decoded(object).map(Change::Apply),
            Event::Delete(object) => Some(Change::Delete(reference(&object))),
        };
        if let Some(change) = change {
            // Once nobody receives any more, the source ends.
            let _ = self.changes.send(change).await;
        }
    }

    fn listed(&mut self) -> Change {
        let objects = std::mem::take(&mut self.listing);
        tracing::info!(kind = %K::KIND, objects = objects.len(), "got the complete list from the API server");
        Change::Replace {
            kind: K::KIND,
            objects,
        }
    }
}

/// The object as the agent keeps it. One that cannot be decoded is left as it was, its deletion is still understood.
fn decoded<K: Watched>(object: DeserializeGuard<K>) -> Option<Object> {
    let reference = reference(&object);
    match object.0 {
        Ok(mut object) => {
            // Who changed what and when is a large part of an object.
            object.meta_mut().managed_fields = None;
            Some(object.into_object())
        }
        Err(error) => {
            tracing::warn!(%reference, %error, "cannot decode what the API server sent: the change is not followed");
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

/// Whether the watch must begin anew. The watcher does so by itself where the API server says, in the stream, that the
/// resource version is gone; else it resumes where it was. That does not help where an event is lost, or where the
/// version is unknown to the API server (after its store was restored from a backup).
fn needs_list(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchError(status) => status.code != 410,
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => {
            status.code == 410 || is_version_too_large(status)
        }
        watcher::Error::WatchFailed(kube::Error::SerdeError(_)) => true,
        _ => false,
    }
}

fn is_version_too_large(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes
        .into_iter()
        .any(|cause| cause.reason == "ResourceVersionTooLarge")
}
