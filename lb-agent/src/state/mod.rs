//! The latest objects of the source, and which Services a change affects.

mod cidrs;
mod endpoints;
mod labels;
mod nodes;
mod observed;
mod pod_addresses;
mod pods;
mod surroundings;
mod trim;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Node, Pod, Service};

use crate::desired::NamespacedName;
use crate::model::{NodeConfig, Problem, Slice, Slices, is_of_this_proxy};
use crate::object::{Change, Object, ObjectKind, ObjectReference, trim_node};
use cidrs::ServiceCidrs;
use labels::LabelIndex;
use nodes::{AddressIndex, OtherNodes};
pub use observed::{Changes, Observed, Trigger};
use pod_addresses::PodAddresses;

/// The label that contains the name of a slice's Service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// All objects, indexed by Service.
#[derive(Debug)]
pub struct ClusterState {
    /// The node as the command line and the machine describe it.
    configured: NodeConfig,
    /// The same, with the data of the Node object.
    node: NodeConfig,
    /// Kinds that have not been listed yet.
    pending: BTreeSet<ObjectKind>,
    // The values are boxed, because hash maps reserve space for more entries than they contain, and
    // B-tree nodes for eleven.
    services: HashMap<NamespacedName, Box<Service>>,
    /// Slices by Service and name.
    slices: HashMap<NamespacedName, BTreeMap<String, Box<Slice>>>,
    /// The Service of each slice; `None` if its label is missing.
    slice_owners: HashMap<NamespacedName, Option<NamespacedName>>,
    /// Pods. It stays empty unless the source delivers them.
    pods: BTreeMap<NamespacedName, Pod>,
    pods_by_label: LabelIndex,
    /// Services with a selector, by the first pair of the selector.
    selectors: LabelIndex,
    /// Services with addresses that other Nodes may have.
    by_address: AddressIndex,
    pod_addresses: PodAddresses,
    node_object: Option<Node>,
    other_nodes: OtherNodes,
    cidrs: ServiceCidrs,
    dirty: BTreeSet<NamespacedName>,
    /// Addresses of Pods that have ended since the last call of [`Self::take_ended`].
    ended: BTreeSet<IpAddr>,
    observed: Observed,
}

impl ClusterState {
    /// Creates a state without objects. The source delivers `kinds`.
    pub fn new(node: NodeConfig, kinds: impl IntoIterator<Item = ObjectKind>) -> Self {
        Self {
            configured: node.clone(),
            node,
            pending: kinds.into_iter().collect(),
            services: HashMap::new(),
            slices: HashMap::new(),
            slice_owners: HashMap::new(),
            pods: BTreeMap::new(),
            pods_by_label: LabelIndex::default(),
            selectors: LabelIndex::default(),
            by_address: AddressIndex::default(),
            pod_addresses: PodAddresses::default(),
            node_object: None,
            other_nodes: OtherNodes::default(),
            cidrs: ServiceCidrs::default(),
            dirty: BTreeSet::new(),
            ended: BTreeSet::new(),
            observed: Observed::default(),
        }
    }

    /// Whether every kind has been listed once. Before that, a missing object may exist.
    pub fn ready(&self) -> bool {
        self.pending.is_empty()
    }

    /// The kinds that have not been listed yet.
    pub fn pending(&self) -> impl Iterator<Item = ObjectKind> {
        self.pending.iter().copied()
    }

    /// Records a change.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Apply(object) => self.put(object),
            Change::Delete(reference) => self.remove(&reference),
            Change::Replace { kind, objects } => {
                let mut gone = self.names(kind);
                for object in objects {
                    let reference = object.reference();
                    if reference.kind == kind {
                        gone.remove(&NamespacedName {
                            namespace: reference.namespace,
                            name: reference.name,
                        });
                        self.put(object);
                    }
                }
                for NamespacedName { namespace, name } in gone {
                    self.remove(&ObjectReference {
                        kind,
                        namespace,
                        name,
                    });
                }
                self.pending.remove(&kind);
            }
        }
    }

    /// Changes the node's configuration. The name must stay the same.
    pub fn set_node(&mut self, node: NodeConfig) {
        self.configured = node;
        self.node_changed();
    }

    /// The node's configuration, with its zone and its primary address of each family from the Node
    /// object, and with the addresses of other Nodes.
    pub fn node(&self) -> &NodeConfig {
        &self.node
    }

    /// Whether a Pod of this node has or may have an address: an endpoint or a Pod has it that is
    /// not on another node, or it is in one of the node's Pod CIDRs.
    pub fn is_pod_address(&self, address: IpAddr) -> bool {
        self.pod_addresses.contains(address)
    }

    /// Data from the objects for health checks and metrics.
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// Returns the slices that changed since the last call.
    pub fn take_triggers(&mut self) -> Vec<Trigger> {
        std::mem::take(&mut self.observed.triggers)
    }

    /// Returns the Services that changed since the last call.
    pub fn take_dirty(&mut self) -> BTreeSet<NamespacedName> {
        self.observed.service_changes.pending = 0;
        self.observed.endpoint_changes.pending = 0;
        std::mem::take(&mut self.dirty)
    }

    /// Returns the addresses that stopped being a Pod's since the last call. The Pods do not come
    /// back.
    pub fn take_ended(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.ended)
    }

    /// Returns a Service, if it exists.
    pub fn service(&self, name: &NamespacedName) -> Option<&Service> {
        self.services.get(name).map(Box::as_ref)
    }

    /// Returns the slices of a Service. If it has none, they are derived from Pods, and the
    /// problems of those Pods are returned, too.
    pub fn slices(&self, name: &NamespacedName) -> (Slices<'_>, Vec<Problem>) {
        if let Some(slices) = self.slices.get(name) {
            let slices = slices
                .iter()
                .map(|(name, slice)| (name.as_str(), Cow::Borrowed(&**slice)));
            let slices = slices.collect();
            return (
                Slices {
                    slices,
                    origin: ObjectKind::EndpointSlice,
                },
                Vec::new(),
            );
        }
        let mut problems = Vec::new();
        let mut slices = Vec::new();
        if let Some((service, selector)) = self
            .services
            .get(name)
            .and_then(|service| Some((service, labels::selector(service)?)))
        {
            for pod_name in self.pods_by_label.candidates(&name.namespace, selector) {
                let pod = self.pods.get(&NamespacedName {
                    namespace: name.namespace.clone(),
                    name: pod_name.clone(),
                });
                if let Some(pod) = pod.filter(|pod| labels::matches(selector, pod.metadata.labels.as_ref())) {
                    let of_pod = pods::slices(service, pod, &mut problems);
                    let read = |slice| Cow::Owned(Slice::read(&slice, &self.node.name));
                    slices.extend(of_pod.into_iter().map(|slice| (pod_name.as_str(), read(slice))));
                }
            }
        }
        problems.dedup();
        (
            Slices {
                slices,
                origin: ObjectKind::Pod,
            },
            problems,
        )
    }

    /// The problems of objects that belong to no Service.
    pub fn problems(&self) -> Vec<Problem> {
        let unlabelled = self.slice_owners.iter().filter(|(_, owner)| owner.is_none());
        let mut problems: Vec<Problem> = unlabelled
            .map(|(name, _)| Problem {
                object: ObjectReference {
                    kind: ObjectKind::EndpointSlice,
                    namespace: name.namespace.clone(),
                    name: name.name.clone(),
                },
                message: format!("it belongs to no Service: give it the label {SERVICE_NAME_LABEL}"),
            })
            .collect();
        problems.extend_from_slice(self.cidrs.problems());
        problems.sort();
        problems
    }

    fn names(&self, kind: ObjectKind) -> BTreeSet<NamespacedName> {
        let name = |name: &String| NamespacedName {
            namespace: String::new(),
            name: name.clone(),
        };
        match kind {
            ObjectKind::Service => self.services.keys().cloned().collect(),
            ObjectKind::EndpointSlice => self.slice_owners.keys().cloned().collect(),
            ObjectKind::Pod => self.pods.keys().cloned().collect(),
            ObjectKind::Node => {
                let own = self.node_object.iter().map(|_| &self.configured.name);
                let names = own.chain(self.other_nodes.names());
                names.map(name).collect()
            }
            ObjectKind::ServiceCidr => self.cidrs.names().map(name).collect(),
        }
    }

    fn put(&mut self, object: Object) {
        let ObjectReference { namespace, name, .. } = object.reference();
        let name = NamespacedName { namespace, name };
        match object {
            Object::Service(service) => {
                let is_of_other = !is_of_this_proxy(&service, &self.configured);
                self.set_service(name, Some(trim::service(*service, is_of_other)));
            }
            Object::EndpointSlice(slice) => self.set_slice(name, Some(*slice)),
            Object::Pod(pod) => self.set_pod(name, Some(trim::pod(*pod))),
            Object::ServiceCidr(cidr) => {
                if self.cidrs.set(name.name, Some(*cidr)) {
                    self.cidrs_changed();
                }
            }
            Object::Node(node) if name.name == self.configured.name => {
                self.set_pod_networks(&name.name, Some(&node));
                let mut node = *node;
                trim_node(&mut node);
                self.observed.node_is_leaving = observed::is_leaving(&node);
                self.node_object = Some(node);
                self.node_changed();
            }
            Object::Node(node) => self.set_other_node(&name.name, Some(&node)),
        }
    }

    fn remove(&mut self, reference: &ObjectReference) {
        let name = NamespacedName {
            namespace: reference.namespace.clone(),
            name: reference.name.clone(),
        };
        match reference.kind {
            ObjectKind::Service => self.set_service(name, None),
            ObjectKind::EndpointSlice => self.set_slice(name, None),
            ObjectKind::Pod => self.set_pod(name, None),
            ObjectKind::ServiceCidr => {
                if self.cidrs.set(name.name, None) {
                    self.cidrs_changed();
                }
            }
            ObjectKind::Node if name.name == self.configured.name => {
                // `node_is_leaving` stays unchanged: an autoscaler deletes the object before the
                // machine is off.
                self.node_object = None;
                self.node_changed();
                self.set_pod_networks(&name.name, None);
            }
            ObjectKind::Node => self.set_other_node(&name.name, None),
        }
    }
}

#[cfg(test)]
mod tests;
