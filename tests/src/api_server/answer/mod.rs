//! Answers to requests. All functions are pure; the server continues a watch.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use hyper::StatusCode;
use hyper::Uri;
use serde_json::{Value, json};

use super::selector::{FieldSelector, LabelSelector};
use super::store::{RESOURCES, Resource, Selection, Store, watch_event};

/// How long a watch lasts if the client specifies no timeout.
const DEFAULT_WATCH_SECONDS: u64 = 1800;

/// An answer.
pub(super) enum Answer {
    /// A complete body.
    Object(StatusCode, Value),
    /// The lines of a watch, after which it ends.
    Lines(Vec<Value>),
    /// A watch: these lines, followed by the events after the version.
    Watch(Watch),
}

/// A watch that stays open.
pub(super) struct Watch {
    pub(super) selection: Selection,
    pub(super) lines: Vec<Value>,
    pub(super) version: u64,
    pub(super) seconds: u64,
    pub(super) bookmarks: bool,
}

impl Watch {
    /// A bookmark with the resource version of this watch. `None` if that version is in the future.
    pub(super) fn bookmark(&self, store: &Store) -> Option<Value> {
        let is_reached = self.version <= store.version();
        is_reached.then(|| bookmark(self.selection.resource, self.version, json!({})))
    }
}

/// A failed request: HTTP status and `Status` object.
pub(super) struct Failure(StatusCode, Value);

impl From<Failure> for Answer {
    fn from(Failure(code, status): Failure) -> Self {
        Self::Object(code, status)
    }
}

/// Makes a failure.
pub(super) fn failure(code: StatusCode, reason: &str, message: &str) -> Failure {
    Failure(code, status(code, reason, message))
}

fn status(code: StatusCode, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    })
}

/// Path of the namespace whose UID identifies the cluster.
pub(super) const NAMESPACE: &str = "/api/v1/namespaces/kube-system";

/// That namespace.
pub(super) fn namespace() -> Value {
    json!({
        "kind": "Namespace", "apiVersion": "v1",
        "metadata": {"name": "kube-system", "uid": super::CLUSTER_UID, "resourceVersion": "1"},
    })
}

/// The resource that a path is about.
pub(super) fn resource(uri: &Uri) -> Option<Resource> {
    RESOURCES.into_iter().find(|resource| resource.path == uri.path())
}

/// Answers a GET.
pub(super) fn get(store: &Store, resource: Resource, uri: &Uri) -> Answer {
    let query = query(uri);
    let text = |key: &str| query.get(key).map_or("", String::as_str);
    let selection = LabelSelector::parse(text("labelSelector"))
        .and_then(|labels| Ok((labels, FieldSelector::parse(text("fieldSelector"))?)));
    let (labels, fields) = match selection {
        Ok(selection) => selection,
        Err(message) => return failure(StatusCode::BAD_REQUEST, "BadRequest", &message).into(),
    };
    let selection = Selection {
        resource,
        labels,
        fields,
    };
    let result = match is_true(text("watch")) {
        true => watch(store, selection, &query),
        false => list(store, selection, &query),
    };
    result.unwrap_or_else(Answer::from)
}

fn list(store: &Store, selection: Selection, query: &BTreeMap<String, String>) -> Result<Answer, Failure> {
    let requested = version(query)?;
    if requested > Some(store.version()) {
        return Err(too_large(store, requested));
    }
    let (version, start) = match query.get("continue") {
        None => (store.version(), 0),
        Some(token) => continued(store, token)?,
    };
    let mut items = store.list(&selection, version);
    let limit: usize = number(query, "limit")?.unwrap_or(0);
    let end = match limit {
        0 => items.len(),
        // A real server answers this from its cache, which does not paginate.
        _ if requested == Some(0) => items.len(),
        limit => items.len().min(start + limit),
    };
    let more = end < items.len();
    items.truncate(end);
    items.drain(..start.min(end));
    for item in items.iter_mut().filter_map(Value::as_object_mut) {
        item.remove("kind");
        item.remove("apiVersion");
    }
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if more {
        metadata["continue"] = json!(format!("{version}.{end}"));
    }
    let Resource {
        api_version, kind, ..
    } = selection.resource;
    let list = json!({"kind": format!("{kind}List"), "apiVersion": api_version, "metadata": metadata, "items": items});
    Ok(Answer::Object(StatusCode::OK, list))
}

/// The version and the position at which a list continues.
fn continued(store: &Store, token: &str) -> Result<(u64, usize), Failure> {
    let parts = token
        .split_once('.')
        .and_then(|(version, start)| Some((version.parse().ok()?, start.parse().ok()?)));
    match parts {
        None => Err(failure(
            StatusCode::BAD_REQUEST,
            "BadRequest",
            "continue key is not valid",
        )),
        Some((version, _)) if store.is_expired(version) => {
            let message = "The provided continue parameter is too old";
            Err(failure(StatusCode::GONE, "Expired", message))
        }
        Some(parts) => Ok(parts),
    }
}

fn watch(store: &Store, selection: Selection, query: &BTreeMap<String, String>) -> Result<Answer, Failure> {
    let requested = version(query)?;
    let initial = query.get("sendInitialEvents").is_some_and(|value| is_true(value));
    let matching = query.get("resourceVersionMatch").map(String::as_str);
    if initial != (matching == Some("NotOlderThan")) {
        let message = "sendInitialEvents and resourceVersionMatch=NotOlderThan need each other";
        return Err(failure(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message));
    }
    let resource = selection.resource;
    // A version in the future is valid: the watch is silent until the store reaches it.
    let since = requested.filter(|&version| version != 0 && !initial);
    if let Some(version) = since.filter(|&version| store.is_expired(version)) {
        let message = format!("too old resource version: {version} ({})", store.version());
        let gone = status(StatusCode::GONE, "Expired", &message);
        return Ok(Answer::Lines(vec![json!({"type": "ERROR", "object": gone})]));
    }
    let mut lines = Vec::new();
    if since.is_none() {
        let objects = store.list(&selection, store.version()).into_iter();
        lines.extend(objects.map(|object| watch_event("ADDED", resource, object)));
    }
    if initial {
        let end = json!({"k8s.io/initial-events-end": "true"});
        lines.push(bookmark(resource, store.version(), json!({"annotations": end})));
    }
    Ok(Answer::Watch(Watch {
        selection,
        lines,
        version: since.unwrap_or(store.version()),
        seconds: number(query, "timeoutSeconds")?.unwrap_or(DEFAULT_WATCH_SECONDS),
        bookmarks: query
            .get("allowWatchBookmarks")
            .is_some_and(|value| is_true(value)),
    }))
}

fn bookmark(resource: Resource, version: u64, mut metadata: Value) -> Value {
    metadata["resourceVersion"] = json!(version.to_string());
    metadata["creationTimestamp"] = Value::Null;
    let object = json!({
        "kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata, "spec": {}, "status": {},
    });
    let object = match resource.kind {
        "EndpointSlice" => json!({
            "kind": resource.kind, "apiVersion": resource.api_version, "metadata": object["metadata"],
            "addressType": "", "endpoints": null, "ports": null,
        }),
        _ => object,
    };
    json!({"type": "BOOKMARK", "object": object})
}

fn too_large(store: &Store, requested: Option<u64>) -> Failure {
    let message = format!(
        "Too large resource version: {}, current: {}",
        requested.unwrap_or_default(),
        store.version()
    );
    let mut status = status(StatusCode::GATEWAY_TIMEOUT, "Timeout", &message);
    status["details"] = json!({
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1,
    });
    Failure(StatusCode::GATEWAY_TIMEOUT, status)
}

fn version(query: &BTreeMap<String, String>) -> Result<Option<u64>, Failure> {
    number(query, "resourceVersion")
}

fn number<T: std::str::FromStr>(query: &BTreeMap<String, String>, key: &str) -> Result<Option<T>, Failure> {
    let text = query.get(key).filter(|text| !text.is_empty());
    let number = text.map(|text| text.parse()).transpose();
    number.map_err(|_| failure(StatusCode::BAD_REQUEST, "BadRequest", &format!("invalid {key}")))
}

fn is_true(text: &str) -> bool {
    matches!(text, "true" | "1")
}

fn query(uri: &Uri) -> BTreeMap<String, String> {
    let pairs = uri.query().unwrap_or_default().split('&');
    let pairs = pairs.filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (decode(key), decode(value))).collect()
}

/// Undoes the encoding of a query.
pub(super) fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || {
                    rest.next()
                        .and_then(|digit| char::from(digit).to_digit(16))
                        .unwrap_or(0)
                };
                let value = digit() << 4 | digit();
                u8::try_from(value).unwrap_or(0)
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
