//! What the objects tell to those who watch the agent: health checks and metrics.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;

use crate::desired::NamespacedName;
use crate::model::Slice;
use crate::network::Family;

/// When the Pod or Service changed that made the control plane write the slice: set by the
/// EndpointSlice controller.
const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Set by the cluster autoscaler on a Node that it is about to delete (`taints.ToBeDeletedTaint` in
/// its source).
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// What has been seen so far.
#[derive(Debug, Default)]
pub struct Observed {
    /// Changes of Services.
    pub service_changes: Changes,
    /// Changes of the endpoints of Services.
    pub endpoint_changes: Changes,
    /// Whether the Node is being deleted.
    pub node_is_leaving: bool,
    /// Slices that changed since they were last asked for.
    pub(super) triggers: Vec<Trigger>,
}

/// Numbers of changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// All since the start.
    pub total: u64,
    /// Those that nobody has taken yet.
    pub pending: u64,
}

impl Changes {
    pub(super) fn add(&mut self) {
        self.total += 1;
        self.pending += 1;
    }
}

/// A change of a slice, and when what caused it happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trigger {
    /// The Service that the slice belongs to.
    pub service: NamespacedName,
    /// The family of the slice.
    pub family: Family,
    /// When the cause happened, by the control plane's clock.
    pub time: Timestamp,
}

impl Trigger {
    pub(super) fn of(service: &NamespacedName, slice: &Slice, time: Option<Timestamp>) -> Option<Self> {
        Some(Self {
            service: service.clone(),
            family: slice.family()?,
            time: time?,
        })
    }
}

/// What the annotation of a slice says. A slice in which only this changed is the same.
pub(super) fn trigger_time(slice: &EndpointSlice) -> Option<Timestamp> {
    let annotations = slice.metadata.annotations.as_ref()?;
    annotations.get(TRIGGER_ANNOTATION)?.parse().ok()
}

/// Whether a Node is being deleted: load balancers shall send it nothing new.
pub(super) fn is_leaving(node: &Node) -> bool {
    let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    node.metadata.deletion_timestamp.is_some() || taints.any(|taint| taint.key == LEAVING_TAINT)
}
