//! Allocates what an API server allocates for Services: cluster IPs, NodePorts, and NodePorts for
//! health checks.
//!
//! A hash of namespace and name chooses the value, so nodes with the same files choose the same
//! values. If two Services choose the same value, the one that had it keeps it. If neither had it,
//! the first by namespace and name gets it, and the other one gets the next free value. A value
//! that a manifest names is never allocated. A Service to which it was allocated before gets
//! another value. [`allocate`] is pure.

mod allocator;
mod asked;
mod fill;
mod options;
mod pool;
mod range;
mod state;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;

pub(super) use self::allocator::Allocator;
use self::asked::Asked;
pub use self::options::{AllocationOptions, ServiceCidrArguments};
use self::pool::{Lost, Pool, Value};
pub use self::range::ServiceCidrs;
use self::state::{AllocationState, Given, Wish};
use crate::desired::PerFamily;
use crate::network::Family;
use crate::object::{Object, ObjectKind, ObjectReference};

/// Objects by their names.
pub(super) type Objects = BTreeMap<ObjectReference, Arc<Object>>;

/// The result of an allocation.
#[derive(Debug, Default)]
struct Allocation {
    /// The Services that got a value, with the values filled in.
    filled: Objects,
    state: AllocationState,
    /// Values that are new.
    new: Vec<Note>,
    /// Values that a Service does not keep.
    moved: Vec<Note>,
    /// Values that cannot be allocated.
    faults: Vec<Note>,
}

/// A message about a Service.
type Note = (ObjectReference, String);

/// Allocates what the Services among `objects` request.
fn allocate(previous: &AllocationState, objects: &Objects, cidrs: &ServiceCidrs) -> Allocation {
    let mut pools = Pools::new(cidrs);
    let mut applicants: Vec<_> = objects
        .iter()
        .filter_map(|(reference, object)| Applicant::of(reference, object, cidrs))
        .collect();
    for applicant in &applicants {
        let claims = applicant.asked.claims.iter();
        claims.for_each(|value| pools.claim(*value, applicant.reference));
    }
    let before = previous.by_service();
    for applicant in &mut applicants {
        applicant.keep(&before, &mut pools);
    }
    // Values of deleted Services are reserved after present Services kept theirs, and before others
    // get new ones.
    let present: BTreeSet<String> = objects.keys().filter(is_service).map(key).collect();
    let mut gone = gone(previous, &present);
    for value in gone.iter().flat_map(|(_, given)| given.values()) {
        pools.reserve(value);
    }
    let mut allocation = Allocation::default();
    for applicant in applicants {
        applicant.give(&mut pools, &mut allocation);
    }
    gone.retain(|(_, given)| given.values().all(|value| pools.is_free(value)));
    gone.drain(..gone.len().saturating_sub(AllocationState::GONE_MAX));
    allocation.state.gone = gone;
    allocation
}

/// Returns the values of Services that do not exist, longest absent first.
fn gone(previous: &AllocationState, present: &BTreeSet<String>) -> Vec<(String, Given)> {
    let still = previous.gone.iter().cloned();
    let now = previous.services.clone().into_iter();
    let mut gone: Vec<_> = still.chain(now).collect();
    gone.retain(|(service, _)| !present.contains(service));
    gone
}

fn is_service(reference: &&ObjectReference) -> bool {
    reference.kind == ObjectKind::Service
}

/// The key of a Service in the state.
fn key(reference: &ObjectReference) -> String {
    format!("{}/{}", reference.namespace, reference.name)
}

/// A Service that may get values.
struct Applicant<'a> {
    reference: &'a ObjectReference,
    service: &'a Service,
    asked: Asked,
    given: Given,
    /// The values that it had and does not keep.
    lost: Vec<(Wish, Value, Lost<'a>)>,
}

impl<'a> Applicant<'a> {
    fn of(reference: &'a ObjectReference, object: &'a Object, cidrs: &ServiceCidrs) -> Option<Self> {
        let Object::Service(service) = object else {
            return None;
        };
        Some(Self {
            reference,
            service,
            asked: Asked::of(service, cidrs)?,
            given: Given::default(),
            lost: Vec::new(),
        })
    }

    /// Lets the Service keep the values that it had.
    fn keep(&mut self, before: &BTreeMap<&str, &Given>, pools: &mut Pools<'a>) {
        let Some(had) = before.get(key(self.reference).as_str()) else {
            return;
        };
        for wish in &self.asked.wishes {
            let (Some(value), Some(pool)) = (had.get(*wish), pools.of(*wish)) else {
                continue;
            };
            match pool.keep(value, self.reference) {
                Ok(()) => self.given.set(*wish, value),
                Err(reason) => self.lost.push((*wish, value, reason)),
            }
        }
    }

    /// Allocates the missing values, and writes the result.
    fn give(mut self, pools: &mut Pools<'a>, allocation: &mut Allocation) {
        let service = key(self.reference);
        let note = |text| (self.reference.clone(), text);
        allocation.faults.extend(self.asked.faults.drain(..).map(note));
        for wish in &self.asked.wishes {
            let Some(pool) = pools.of(*wish) else { continue };
            if self.given.get(*wish).is_some() {
                continue;
            }
            let value = pool.give(self.reference, pool::hash(&wish.text(&service)));
            match value {
                Some(value) => self.given.set(*wish, value),
                None => allocation.faults.push(note(pool.full_message())),
            }
            let lost = self.lost.iter().find(|(lost, ..)| lost == wish);
            match (lost, value) {
                (Some((_, old, reason)), _) => {
                    allocation
                        .moved
                        .push(note(moved_message(*wish, *old, *reason, value)));
                }
                (None, Some(value)) => allocation.new.push(note(wish.describe(value))),
                (None, None) => {}
            }
        }
        if self.given.is_empty() {
            return;
        }
        let families: Vec<Family> = self.asked.families().collect();
        let mut filled = self.service.clone();
        fill::fill(&mut filled, &self.given, &families);
        let object = Arc::new(Object::Service(Box::new(filled)));
        allocation.filled.insert(self.reference.clone(), object);
        allocation.state.services.insert(service, self.given);
    }
}

/// Describes which value a Service loses, why, and which one it gets.
fn moved_message(wish: Wish, old: Value, reason: Lost<'_>, new: Option<Value>) -> String {
    let old = wish.describe(old);
    let reason = match reason {
        Lost::Claimed(other) => format!("{other} names it in its manifest"),
        Lost::Taken(other) => format!("{other} has it"),
        Lost::OutOfRange => "it is outside of the range (--service-cidr, or that of NodePorts)".to_owned(),
    };
    let instead = match new {
        Some(new) => format!("it gets {}", wish.describe(new)),
        None => "it gets none".to_owned(),
    };
    format!("it does not keep {old}, since {reason}; {instead}: write what must not change into its manifest")
}

/// The pools of all values.
struct Pools<'a> {
    addresses: PerFamily<Option<Pool<'a>>>,
    node_ports: Pool<'a>,
}

impl<'a> Pools<'a> {
    fn new(cidrs: &ServiceCidrs) -> Self {
        Self {
            addresses: PerFamily::of(|family| cidrs.get(family).map(Pool::of_addresses)),
            node_ports: Pool::of_node_ports(),
        }
    }

    fn of(&mut self, wish: Wish) -> Option<&mut Pool<'a>> {
        match wish {
            Wish::Address(Family::V4) => self.addresses.ipv4.as_mut(),
            Wish::Address(Family::V6) => self.addresses.ipv6.as_mut(),
            Wish::NodePort(_) | Wish::HealthCheck => Some(&mut self.node_ports),
        }
    }

    /// Returns the pool that contains a value.
    fn holding(&mut self, value: Value) -> Option<&mut Pool<'a>> {
        match value {
            Value::Address(address) => self.of(Wish::Address(Family::of(address))),
            Value::Port(_) => Some(&mut self.node_ports),
        }
    }

    fn claim(&mut self, value: Value, service: &'a ObjectReference) {
        if let Some(pool) = self.holding(value) {
            pool.claim(value, service);
        }
    }

    fn reserve(&mut self, value: Value) {
        if let Some(pool) = self.holding(value) {
            pool.reserve(value);
        }
    }

    fn is_free(&mut self, value: Value) -> bool {
        self.holding(value).is_some_and(|pool| pool.is_free(value))
    }
}

#[cfg(test)]
mod tests;
