//! Finds objects by their labels without visiting all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::core::v1::Service;

use crate::desired::NamespacedName;

/// Names of objects by namespace and a label.
#[derive(Debug, Default)]
pub(super) struct LabelIndex {
    names: HashMap<String, HashMap<(String, String), BTreeSet<String>>>,
}

impl LabelIndex {
    pub(super) fn insert(&mut self, name: &NamespacedName, (key, value): (&String, &String)) {
        let namespace = self.names.entry(name.namespace.clone()).or_default();
        namespace
            .entry((key.clone(), value.clone()))
            .or_default()
            .insert(name.name.clone());
    }

    pub(super) fn remove(&mut self, name: &NamespacedName, (key, value): (&String, &String)) {
        let Some(namespace) = self.names.get_mut(&name.namespace) else {
            return;
        };
        let pair = (key.clone(), value.clone());
        if let Some(names) = namespace.get_mut(&pair) {
            names.remove(&name.name);
            if names.is_empty() {
                namespace.remove(&pair);
            }
        }
        if namespace.is_empty() {
            self.names.remove(&name.namespace);
        }
    }

    /// The objects with this label.
    pub(super) fn under(
        &self,
        namespace: &str,
        (key, value): (&String, &String),
    ) -> impl Iterator<Item = &String> {
        let names = self
            .names
            .get(namespace)
            .and_then(|names| names.get(&(key.clone(), value.clone())));
        names.into_iter().flatten()
    }

    /// The objects with the rarest of these labels.
    pub(super) fn candidates<'a>(
        &'a self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'a String> + use<'a> {
        let namespace = self.names.get(namespace);
        let sets = labels
            .iter()
            .map(|(key, value)| namespace?.get(&(key.clone(), value.clone())));
        // A label that is not in the index belongs to no object, so there are no candidates.
        let rarest = sets.min_by_key(|names| names.map_or(0, BTreeSet::len)).flatten();
        rarest.into_iter().flatten()
    }
}

/// Whether `labels` have all pairs of `selector`.
pub(super) fn matches(
    selector: &BTreeMap<String, String>,
    labels: Option<&BTreeMap<String, String>>,
) -> bool {
    selector
        .iter()
        .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// The selector of a Service, unless it is empty.
pub(super) fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let selector = service.spec.as_ref()?.selector.as_ref()?;
    (!selector.is_empty()).then_some(selector)
}

/// The first pair of the selector.
pub(super) fn first_pair(service: &Service) -> Option<(&String, &String)> {
    selector(service)?.first_key_value()
}
