//! The objects and the history of their changes.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::selector::{FieldSelector, LabelSelector};

/// A resource that the server has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Resource {
    pub(super) api_version: &'static str,
    pub(super) kind: &'static str,
    pub(super) path: &'static str,
}

/// All resources.
pub(super) const RESOURCES: [Resource; 6] = [
    Resource {
        api_version: "v1",
        kind: "Service",
        path: "/api/v1/services",
    },
    Resource {
        api_version: "discovery.k8s.io/v1",
        kind: "EndpointSlice",
        path: "/apis/discovery.k8s.io/v1/endpointslices",
    },
    Resource {
        api_version: "v1",
        kind: "Node",
        path: "/api/v1/nodes",
    },
    Resource {
        api_version: "v1",
        kind: "Pod",
        path: "/api/v1/pods",
    },
    Resource {
        api_version: "networking.k8s.io/v1",
        kind: "ServiceCIDR",
        path: "/apis/networking.k8s.io/v1/servicecidrs",
    },
    Resource {
        api_version: "networking.k8s.io/v1beta1",
        kind: "ServiceCIDR",
        path: "/apis/networking.k8s.io/v1beta1/servicecidrs",
    },
];

/// The objects that a request selects.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    pub(super) resource: Resource,
    pub(super) labels: LabelSelector,
    pub(super) fields: FieldSelector,
}

impl Selection {
    fn matches(&self, object: &Value) -> bool {
        self.labels.matches(object) && self.fields.matches(object)
    }
}

/// Kind, namespace and name.
type Key = (Resource, String, String);

struct Entry {
    version: u64,
    key: Key,
    old: Option<Value>,
    new: Option<Value>,
}

/// The objects. The complete history is kept; expired entries are only no longer served.
pub(super) struct Store {
    version: u64,
    expired: u64,
    objects: BTreeMap<Key, Value>,
    history: Vec<Entry>,
}

impl Store {
    /// An empty store.
    pub(super) fn new() -> Self {
        Self {
            // A real store also has a version above 0 before its first Service is created.
            version: 100,
            expired: 0,
            objects: BTreeMap::new(),
            history: Vec::new(),
        }
    }

    /// The newest resource version.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Marks the history up to now as expired.
    pub(super) fn expire(&mut self) {
        // The current version itself is not too old. Another write makes it so.
        self.version += 1;
        self.expired = self.version;
    }

    /// Whether the history since this version is expired.
    pub(super) fn is_expired(&self, version: u64) -> bool {
        version < self.expired
    }

    /// Restores the store as of this version, as from a backup.
    pub(super) fn restore(&mut self, version: u64) {
        self.history.retain(|entry| entry.version <= version);
        self.objects = self.at(version);
        self.version = version;
    }

    /// Creates or changes an object.
    pub(super) fn apply(&mut self, mut object: Value) {
        let key = key(&object);
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let old = self.objects.insert(key.clone(), object.clone());
        self.record(key, old, Some(object));
    }

    /// Deletes an object, if it exists.
    pub(super) fn delete(&mut self, object: &Value) {
        let key = key(object);
        if let Some(old) = self.objects.remove(&key) {
            self.version += 1;
            self.record(key, Some(old), None);
        }
    }

    fn record(&mut self, key: Key, old: Option<Value>, new: Option<Value>) {
        let version = self.version;
        self.history.push(Entry {
            version,
            key,
            old,
            new,
        });
    }

    /// The selected objects as they were at a version.
    pub(super) fn list(&self, selection: &Selection, version: u64) -> Vec<Value> {
        let objects = self.at(version).into_iter();
        objects
            .filter(|(key, object)| key.0 == selection.resource && selection.matches(object))
            .map(|(_, object)| object)
            .collect()
    }

    fn at(&self, version: u64) -> BTreeMap<Key, Value> {
        let mut objects = BTreeMap::new();
        for entry in self.history.iter().filter(|entry| entry.version <= version) {
            match &entry.new {
                Some(object) => objects.insert(entry.key.clone(), object.clone()),
                None => objects.remove(&entry.key),
            };
        }
        objects
    }

    /// The watch events after a version.
    pub(super) fn events(&self, selection: &Selection, after: u64) -> Vec<Value> {
        let entries = self.history.iter().filter(|entry| entry.version > after);
        entries.filter_map(|entry| event(selection, entry)).collect()
    }
}

/// The event of a change for a watch of the selected objects.
fn event(selection: &Selection, entry: &Entry) -> Option<Value> {
    if entry.key.0 != selection.resource {
        return None;
    }
    let old = entry.old.as_ref().filter(|old| selection.matches(old));
    let new = entry.new.as_ref().filter(|new| selection.matches(new));
    let (change, object) = match (old, new) {
        (None, None) => return None,
        (None, Some(new)) => ("ADDED", new.clone()),
        (Some(_), Some(new)) => ("MODIFIED", new.clone()),
        (Some(old), None) => {
            let mut object = old.clone();
            object["metadata"]["resourceVersion"] = json!(entry.version.to_string());
            ("DELETED", object)
        }
    };
    Some(watch_event(change, selection.resource, object))
}

/// One line of a watch. Unlike in a list, the object contains its kind.
pub(super) fn watch_event(change: &str, resource: Resource, mut object: Value) -> Value {
    object["apiVersion"] = json!(resource.api_version);
    object["kind"] = json!(resource.kind);
    json!({"type": change, "object": object})
}

fn key(object: &Value) -> Key {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let resource = RESOURCES
        .into_iter()
        .find(|resource| resource.api_version == api_version && resource.kind == kind)
        .expect("only resources that are served are stored");
    let metadata = &object["metadata"];
    (resource, text(&metadata["namespace"]), text(&metadata["name"]))
}
