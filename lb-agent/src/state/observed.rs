//! Data from the objects for health checks and metrics.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;

use crate::desired::NamespacedName;
use crate::model::Slice;
use crate::network::Family;

/// The time of the Pod or Service change that made the control plane write the slice. The
/// EndpointSlice controller sets it.
const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// The taint that the cluster autoscaler sets on a Node before it deletes the Node
/// (`taints.ToBeDeletedTaint` in its source).
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// The observations so far.
#[derive(Debug, Default)]
pub struct Observed {
    /// Changes of Services.
    pub service_changes: Changes,
    /// Changes of the endpoints of Services.
    pub endpoint_changes: Changes,
    /// Whether the Node is being deleted.
    pub node_is_leaving: bool,
    /// Slices that changed since the last call of [`super::ClusterState::take_triggers`].
    pub(super) triggers: Vec<Trigger>,
}

/// A count of changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// All changes since the start.
    pub total: u64,
    /// Changes that are not processed yet.
    pub pending: u64,
}

impl Changes {
    pub(super) fn add(&mut self) {
        self.total += 1;
        self.pending += 1;
    }
}

/// A change of a slice, and the time of its cause.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trigger {
    /// The Service that the slice belongs to.
    pub service: NamespacedName,
    /// The family of the slice.
    pub family: Family,
    /// The time of the cause, by the control plane's clock.
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

/// Returns the time in the annotation of a slice. A change of only the annotation is not a change
/// of the slice.
pub(super) fn trigger_time(slice: &EndpointSlice) -> Option<Timestamp> {
    let annotations = slice.metadata.annotations.as_ref()?;
    annotations.get(TRIGGER_ANNOTATION)?.parse().ok()
}

/// Whether a Node is being deleted. Load balancers should not send it new connections.
pub(super) fn is_leaving(node: &Node) -> bool {
    let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    node.metadata.deletion_timestamp.is_some() || taints.any(|taint| taint.key == LEAVING_TAINT)
}
