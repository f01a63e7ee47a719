//! The objects as the source last told them, and which Services a change concerns.

mod cidrs;
mod labels;
mod nodes;
mod observed;
mod pod_addresses;
mod pods;
mod trim;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::desired::NamespacedName;
use crate::model::{NodeConfig, Problem, Slice, Slices, is_of_this_proxy};
use crate::network::Family;
use crate::object::{Change, Kind, Object, ObjectReference, trim_node};
use cidrs::ServiceCidrs;
use labels::LabelIndex;
use nodes::{AddressIndex, OtherNodes};
use observed::trigger_time;
pub use observed::{Changes, Observed, Trigger};
use pod_addresses::PodAddresses;

/// The label that says which Service a slice belongs to.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// The label that says which zone a Node is in.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// All objects, indexed by Service.
#[derive(Debug)]
pub struct State {
    /// The node as the command line and the machine describe it.
    configured: NodeConfig,
    /// The same with what the Node object says.
    node: NodeConfig,
    /// Kinds that have not been listed yet.
    pending: BTreeSet<Kind>,
    // In boxes, since maps have room for more than they hold, and a node of a tree for eleven.
    services: HashMap<NamespacedName, Box<Service>>,
    /// Slices by Service and name.
    slices: HashMap<NamespacedName, BTreeMap<String, Box<Slice>>>,
    /// The Service of each slice; `None`: its label is missing.
    slice_owners: HashMap<NamespacedName, Option<NamespacedName>>,
    /// Pods; stays empty unless the source delivers them.
    pods: BTreeMap<NamespacedName, Pod>,
    pods_by_label: LabelIndex,
    /// Services with a selector, under the first pair of it.
    selectors: LabelIndex,
    /// Services that may have another Node's address.
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

impl State {
    /// No objects yet. The source delivers `kinds`.
    pub fn new(node: NodeConfig, kinds: impl IntoIterator<Item = Kind>) -> Self {
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

    /// Whether every kind has been listed once: until then what is missing here may exist.
    pub fn ready(&self) -> bool {
        self.pending.is_empty()
    }

    /// The kinds that have not been listed yet.
    pub fn pending(&self) -> impl Iterator<Item = Kind> {
        self.pending.iter().copied()
    }

    /// Takes note of a change.
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

    /// Changes the node's description. It keeps its name.
    pub fn set_node(&mut self, node: NodeConfig) {
        self.configured = node;
        self.node_changed();
    }

    /// The node with what its object says (its zone, and its primary address of each family) and the other Nodes'
    /// addresses.
    pub fn node(&self) -> &NodeConfig {
        &self.node
    }

    /// Whether an address is one that a Pod of this node has or may have: that of an endpoint or a Pod which is not on another
    /// node, or one of the node's Pod CIDRs.
    pub fn is_pod_address(&self, address: IpAddr) -> bool {
        self.pod_addresses.contains(address)
    }

    /// What the objects tell to those who watch the agent.
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// Which slices changed since the last call.
    pub fn take_triggers(&mut self) -> Vec<Trigger> {
        std::mem::take(&mut self.observed.triggers)
    }

    /// The Services that changed since the last call.
    pub fn take_dirty(&mut self) -> BTreeSet<NamespacedName> {
        self.observed.service_changes.pending = 0;
        self.observed.endpoint_changes.pending = 0;
        std::mem::take(&mut self.dirty)
    }

    /// Addresses that were a Pod's and are it no more since the last call: what was there does not come back.
    pub fn take_ended(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.ended)
    }

    /// Whether there are Services that changed.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// A Service, if it exists.
    pub fn service(&self, name: &NamespacedName) -> Option<&Service> {
        self.services.get(name).map(Box::as_ref)
    }

    /// The slices of a Service, and what is wrong with the Pods from which they were derived if there are none.
    pub fn slices(&self, name: &NamespacedName) -> (Slices<'_>, Vec<Problem>) {
        if let Some(slices) = self.slices.get(name) {
            let slices = slices
                .iter()
                .map(|(name, slice)| (name.as_str(), Cow::Borrowed(&**slice)));
            let slices = slices.collect();
            return (
                Slices {
                    slices,
                    origin: Kind::EndpointSlice,
                },
                Vec::new(),
            );
        }
        let mut problems = Vec::new();
        let mut slices = Vec::new();
        if let Some((service, selector)) = self
            .services
            .get(name)
            .and_then(|service| Some((service, selector(service)?)))
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
                origin: Kind::Pod,
            },
            problems,
        )
    }

    /// What is wrong with objects that belong to no Service.
    pub fn problems(&self) -> Vec<Problem> {
        let unlabelled = self.slice_owners.iter().filter(|(_, owner)| owner.is_none());
        let mut problems: Vec<Problem> = unlabelled
            .map(|(name, _)| Problem {
                object: ObjectReference {
                    kind: Kind::EndpointSlice,
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

    fn names(&self, kind: Kind) -> BTreeSet<NamespacedName> {
        let name = |name: &String| NamespacedName {
            namespace: String::new(),
            name: name.clone(),
        };
        match kind {
            Kind::Service => self.services.keys().cloned().collect(),
            Kind::EndpointSlice => self.slice_owners.keys().cloned().collect(),
            Kind::Pod => self.pods.keys().cloned().collect(),
            Kind::Node => {
                let own = self.node_object.iter().map(|_| &self.configured.name);
                let names = own.chain(self.other_nodes.names());
                names.map(name).collect()
            }
            Kind::ServiceCidr => self.cidrs.names().map(name).collect(),
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
            Kind::Service => self.set_service(name, None),
            Kind::EndpointSlice => self.set_slice(name, None),
            Kind::Pod => self.set_pod(name, None),
            Kind::ServiceCidr => {
                if self.cidrs.set(name.name, None) {
                    self.cidrs_changed();
                }
            }
            Kind::Node if name.name == self.configured.name => {
                // Whether it was leaving stays as it was: an autoscaler deletes the object before the machine is off.
                self.node_object = None;
                self.node_changed();
                self.set_pod_networks(&name.name, None);
            }
            Kind::Node => self.set_other_node(&name.name, None),
        }
    }

    fn set_service(&mut self, name: NamespacedName, service: Option<Service>) {
        if self.service(&name) == service.as_ref() {
            return;
        }
        if let Some(old) = self.services.get(&name) {
            if let Some(pair) = first_selector(old) {
                self.selectors.remove(&name, pair);
            }
            self.by_address.remove(&name, old);
        }
        if let Some(new) = &service {
            if let Some(pair) = first_selector(new) {
                self.selectors.insert(&name, pair);
            }
            self.by_address.insert(&name, new);
        }
        match service {
            Some(service) => self.services.insert(name.clone(), Box::new(service)),
            None => self.services.remove(&name),
        };
        self.observed.service_changes.add();
        self.dirty.insert(name);
    }

    fn set_slice(&mut self, name: NamespacedName, slice: Option<EndpointSlice>) {
        let owner = slice.as_ref().map(|slice| {
            let label = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
            (!label.is_empty()).then(|| NamespacedName {
                namespace: name.namespace.clone(),
                name: label.clone(),
            })
        });
        let old_owner = match &owner {
            Some(owner) => self.slice_owners.insert(name.clone(), owner.clone()).flatten(),
            None => self.slice_owners.remove(&name).flatten(),
        };
        let owner = owner.flatten();
        if old_owner != owner
            && let Some(old_owner) = old_owner
            && let Some(slices) = self.slices.get_mut(&old_owner)
        {
            let gone = slices.remove(&name.name);
            let gone = gone.iter().flat_map(|slice| slice.addresses_here());
            self.pod_addresses.remove(gone);
            if slices.is_empty() {
                self.slices.remove(&old_owner);
            }
            self.endpoints_changed(old_owner);
        }
        let (Some(owner), Some(slice)) = (owner, slice) else {
            return;
        };
        let slices = self.slices.entry(owner.clone()).or_default();
        let trigger = trigger_time(&slice);
        let slice = Slice::read(&slice, &self.node.name);
        if slices.get(&name.name).map(Box::as_ref) != Some(&slice) {
            self.observed
                .triggers
                .extend(Trigger::of(&owner, &slice, trigger));
            self.pod_addresses.add(slice.addresses_here());
            let old = slices.insert(name.name, Box::new(slice));
            let old = old.iter().flat_map(|slice| slice.addresses_here());
            self.pod_addresses.remove(old);
            self.endpoints_changed(owner);
        }
    }

    fn endpoints_changed(&mut self, service: NamespacedName) {
        self.observed.endpoint_changes.add();
        self.dirty.insert(service);
    }

    fn set_pod(&mut self, name: NamespacedName, pod: Option<Pod>) {
        if self.pods.get(&name) == pod.as_ref() {
            return;
        }
        let old = match pod {
            Some(pod) => {
                self.pod_addresses
                    .add(pods::addresses_here(&pod, &self.configured.name));
                self.pod_concerns(&name, &pod);
                for pair in pod.metadata.labels.iter().flatten() {
                    self.pods_by_label.insert(&name, pair);
                }
                self.pods.insert(name.clone(), pod)
            }
            None => self.pods.remove(&name),
        };
        let Some(old) = old else {
            return;
        };
        self.pod_addresses
            .remove(pods::addresses_here(&old, &self.configured.name));
        self.pod_concerns(&name, &old);
        let new = self.pods.get(&name).map(pods::addresses_of).unwrap_or_default();
        let lost = pods::addresses_of(&old).into_values();
        self.ended
            .extend(lost.filter(|address| new.get(&Family::of(*address)) != Some(address)));
        let labels = self.pods.get(&name).and_then(|pod| pod.metadata.labels.as_ref());
        for (key, value) in old.metadata.labels.iter().flatten() {
            if labels.and_then(|labels| labels.get(key)) != Some(value) {
                self.pods_by_label.remove(&name, (key, value));
            }
        }
    }

    /// The Services that select a Pod changed, unless they have slices.
    fn pod_concerns(&mut self, name: &NamespacedName, pod: &Pod) {
        let labels = pod.metadata.labels.as_ref();
        for pair in labels.into_iter().flatten() {
            for service in self.selectors.under(&name.namespace, pair) {
                let service = NamespacedName {
                    namespace: name.namespace.clone(),
                    name: service.clone(),
                };
                let selector = self.service(&service).and_then(selector);
                if selector.is_some_and(|selector| labels::matches(selector, labels))
                    && !self.slices.contains_key(&service)
                {
                    self.observed.endpoint_changes.add();
                    self.dirty.insert(service);
                }
            }
        }
    }

    /// The Services that have an address which another Node got or lost changed.
    fn set_other_node(&mut self, name: &str, node: Option<&Node>) {
        self.set_pod_networks(name, node);
        let (come, gone) = self.other_nodes.set(name, node);
        for address in come.iter().chain(&gone) {
            self.dirty.extend(self.by_address.at(*address).cloned());
        }
        let known = &mut self.node.other_nodes;
        known.extend(come);
        for address in &gone {
            known.remove(address);
        }
    }

    fn set_pod_networks(&mut self, name: &str, node: Option<&Node>) {
        if self.cidrs.set_node(name, node) {
            self.cidrs_changed();
        }
    }

    /// Other Service CIDRs may be in force now: then Services of other proxies hold their addresses, or need not.
    fn cidrs_changed(&mut self) {
        let new = self.cidrs.in_force(&self.configured.service_cidrs);
        if self.node.service_cidrs == new {
            return;
        }
        self.node.service_cidrs = new;
        let others = self.services.iter();
        let others = others.filter(|(_, service)| !is_of_this_proxy(service, &self.node));
        self.dirty.extend(others.map(|(name, _)| name.clone()));
    }

    fn node_changed(&mut self) {
        self.pod_addresses.set_networks(self.node_object.as_ref());
        let new = self.effective_node();
        let old = std::mem::replace(&mut self.node, new);
        let new_addresses = self.node.addresses != old.addresses
            || self.node.device_addresses != old.device_addresses
            || self.node.node_port_addresses != old.node_port_addresses;
        let moved = self.node.differing_addresses(&old);
        let new_zone = self.node.zone != old.zone;
        self.node.other_nodes = old.other_nodes;
        self.node.service_cidrs = old.service_cidrs;
        // Rare: the node's address or zone changed.
        let concerned = self.services.iter().filter(|(name, service)| {
            let slices = self.slices.get(name);
            let any_slice = |is: &dyn Fn(&Slice) -> bool| {
                slices.is_some_and(|slices| slices.values().any(|slice| is(slice)))
            };
            new_addresses && trim::depends_on_addresses(service)
                || !moved.is_empty() && any_slice(&|slice| slice.is_at(&moved))
                || new_zone && any_slice(&Slice::has_hints)
        });
        self.dirty.extend(concerned.map(|(name, _)| name.clone()));
    }

    fn effective_node(&self) -> NodeConfig {
        let mut node = self.configured.clone();
        let Some(object) = &self.node_object else {
            return node;
        };
        if let Some(zone) = object
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(ZONE_LABEL))
        {
            node.zone = Some(zone.clone());
        }
        for is_family in [std::net::IpAddr::is_ipv4, std::net::IpAddr::is_ipv6] {
            let of_type = |type_| nodes::typed(object, type_).find(is_family);
            if let Some(primary) = of_type("InternalIP").or_else(|| of_type("ExternalIP")) {
                node.addresses.retain(|address| !is_family(address));
                node.addresses.insert(primary);
            }
        }
        node
    }
}

fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let selector = service.spec.as_ref()?.selector.as_ref()?;
    (!selector.is_empty()).then_some(selector)
}

fn first_selector(service: &Service) -> Option<(&String, &String)> {
    selector(service)?.first_key_value()
}

#[cfg(test)]
mod tests;
