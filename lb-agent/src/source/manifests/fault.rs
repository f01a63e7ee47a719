//! The errors of the documents of a file.

use crate::object::ObjectKind;

/// The maximum number of broken documents. The rest of the file is not read: it is probably not a
/// manifest.
pub(super) const MAX_BROKEN_DOCUMENTS: usize = 100;

/// An error of a document.
#[derive(Debug)]
pub(super) struct Fault {
    /// The line, counted from 1.
    pub(super) line: usize,
    /// What is wrong.
    pub(super) reason: Reason,
}

/// What can be wrong with a document.
#[derive(Debug, thiserror::Error)]
pub(super) enum Reason {
    #[error("{0}")]
    Yaml(String),
    #[error("{object}: {fault}")]
    Object { object: String, fault: String },
    #[error("not a Kubernetes object: {0} is missing")]
    Missing(&'static str),
    #[error("{0} without metadata.name: give it a name")]
    Unnamed(ObjectKind),
    #[error("{kind} with the {what} {name:?}: it {fault}")]
    Name {
        kind: ObjectKind,
        what: &'static str,
        name: String,
        fault: &'static str,
    },
    #[error("{object} is ignored: only v1 Service, Node, Pod and discovery.k8s.io/v1 EndpointSlice are read")]
    UnknownKind { object: String },
    #[error("{object}: the field {field} is not known and has no effect: correct its name or remove it")]
    UnknownField { object: String, field: String },
    #[error("{object}: {field} occurs twice, and only the last one is used: remove the other")]
    Repeated { object: String, field: String },
    #[error("a List within a List: put its items into the outer one")]
    NestedList,
    #[error("{MAX_BROKEN_DOCUMENTS} broken documents: the rest of the file is not read")]
    TooManyBroken,
}
