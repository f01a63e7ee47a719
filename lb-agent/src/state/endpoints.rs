//! Determines which Services a change of a Service, a slice or a Pod affects.

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::observed::{Trigger, trigger_time};
use super::{ClusterState, SERVICE_NAME_LABEL, labels, pods};
use crate::desired::NamespacedName;
use crate::model::Slice;
use crate::network::Family;

impl ClusterState {
    pub(super) fn set_service(&mut self, name: NamespacedName, service: Option<Service>) {
        if self.service(&name) == service.as_ref() {
            return;
        }
        if let Some(old) = self.services.get(&name) {
            if let Some(pair) = labels::first_pair(old) {
                self.selectors.remove(&name, pair);
            }
            self.by_address.remove(&name, old);
        }
        if let Some(new) = &service {
            if let Some(pair) = labels::first_pair(new) {
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

    pub(super) fn set_slice(&mut self, name: NamespacedName, slice: Option<EndpointSlice>) {
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

    pub(super) fn set_pod(&mut self, name: NamespacedName, pod: Option<Pod>) {
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

    /// Marks the Services that select a Pod as changed, unless they have slices.
    fn pod_concerns(&mut self, name: &NamespacedName, pod: &Pod) {
        let labels = pod.metadata.labels.as_ref();
        for pair in labels.into_iter().flatten() {
            for service in self.selectors.under(&name.namespace, pair) {
                let service = NamespacedName {
                    namespace: name.namespace.clone(),
                    name: service.clone(),
                };
                let selector = self.service(&service).and_then(labels::selector);
                if selector.is_some_and(|selector| labels::matches(selector, labels))
                    && !self.slices.contains_key(&service)
                {
                    self.observed.endpoint_changes.add();
                    self.dirty.insert(service);
                }
            }
        }
    }
}
