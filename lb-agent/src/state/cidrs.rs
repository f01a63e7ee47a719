//! Service CIDRs: which networks from the option and from ServiceCIDR objects are in force.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use lb_common::cidr::MAX;

use super::nodes::pod_networks;
use crate::model::{Problem, quoted};
use crate::network::{Cidr, Family};
use crate::object::{ObjectKind, ObjectReference};
use crate::service_cidr::ServiceCidr;

/// The sources of Service CIDRs, and the Pod networks that conflict with them.
#[derive(Debug, Default)]
pub(super) struct ServiceCidrs {
    /// The networks of ServiceCIDRs, by their names. A ServiceCIDR that is being deleted still
    /// contains addresses of Services, so it stays until it is removed.
    objects: BTreeMap<String, Vec<String>>,
    /// The networks of each Node's Pods.
    pod_networks: BTreeMap<String, Vec<Cidr>>,
    problems: Vec<Problem>,
}

impl ServiceCidrs {
    /// The names of the objects.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.objects.keys()
    }

    /// Records an object; `None` means that it is deleted. Returns true if that is a change.
    pub(super) fn set(&mut self, name: String, object: Option<ServiceCIDR>) -> bool {
        let cidrs = object.map(|object| object.spec.and_then(|spec| spec.cidrs).unwrap_or_default());
        match cidrs {
            Some(cidrs) => self.objects.insert(name, cidrs.clone()) != Some(cidrs),
            None => self.objects.remove(&name).is_some(),
        }
    }

    /// Records a Node; `None` means that it is deleted. Returns true if its Pod networks changed.
    pub(super) fn set_node(&mut self, name: &str, node: Option<&Node>) -> bool {
        let new: Vec<Cidr> = node.into_iter().flat_map(pod_networks).collect();
        let old = match new.is_empty() {
            true => self.pod_networks.remove(name),
            false => self.pod_networks.insert(name.to_owned(), new.clone()),
        };
        old.unwrap_or_default() != new
    }

    /// The problems of the Service CIDRs.
    pub(super) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Returns the networks in force: those of the option and those of all objects. Packets to
    /// their addresses that no Service has are dropped.
    pub(super) fn in_force(&mut self, named: &BTreeSet<Cidr>) -> BTreeSet<Cidr> {
        let mut problems = Vec::new();
        let mut cidrs = BTreeSet::new();
        let mut add = |cidr: Cidr, problems: &mut Vec<Problem>| {
            let others = cidrs
                .iter()
                .filter(|other: &&Cidr| other.family() == cidr.family());
            if let Some(overlap) = self.pods_in(cidr) {
                problems.push(overlap);
            } else if !cidrs.contains(&cidr) && others.count() == MAX {
                return Some(too_many(cidr.family()));
            } else {
                cidrs.insert(cidr);
            }
            None
        };
        for cidr in named {
            // The option has at most one network of each family, so the limit is not exceeded.
            add(*cidr, &mut problems);
        }
        for (name, texts) in &self.objects {
            for text in texts {
                let fault = match text.parse::<ServiceCidr>() {
                    Ok(cidr) => add(cidr.network(), &mut problems),
                    Err(error) => Some(error.to_string()),
                };
                let message = |fault| format!("spec.cidrs: {}: {fault}; it is left out", quoted(text));
                problems.extend(fault.map(|fault| problem(ObjectKind::ServiceCidr, name, message(fault))));
            }
        }
        problems.sort();
        problems.dedup();
        for news in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            tracing::warn!("{news}");
        }
        self.problems = problems;
        cidrs
    }

    /// Returns a problem if Pods may have addresses of a network. In that case it is unknown which
    /// of its addresses are unused.
    fn pods_in(&self, cidr: Cidr) -> Option<Problem> {
        let nodes = self.pod_networks.iter();
        let mut pairs = nodes.flat_map(|(node, networks)| networks.iter().map(move |pods| (node, pods)));
        let (node, pods) = pairs.find(|(_, pods)| pods.overlaps(&cidr))?;
        let message = format!(
            "its Pod network {pods} and the Service CIDR {cidr} overlap: packets to addresses that no Service has are not \
             dropped; give Pods or Services another network"
        );
        Some(problem(ObjectKind::Node, node, message))
    }
}

fn problem(kind: ObjectKind, name: &str, message: String) -> Problem {
    let object = ObjectReference {
        kind,
        namespace: String::new(),
        name: name.to_owned(),
    };
    Problem { object, message }
}

fn too_many(family: Family) -> String {
    format!("there are {MAX} other {family} Service CIDRs, which is the maximum: remove one")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(cidrs: &[&str]) -> Option<ServiceCIDR> {
        let quoted: Vec<String> = cidrs.iter().map(|cidr| format!("'{cidr}'")).collect();
        let text = format!(
            "{{metadata: {{name: x}}, spec: {{cidrs: [{}]}}}}",
            quoted.join(", ")
        );
        Some(serde_norway::from_str(&text).unwrap())
    }

    fn node(text: &str) -> Node {
        serde_norway::from_str(&format!("{{metadata: {{name: n}}, spec: {text}}}")).unwrap()
    }

    fn texts(cidrs: &BTreeSet<Cidr>) -> Vec<String> {
        cidrs.iter().map(Cidr::to_string).collect()
    }

    fn messages(cidrs: &ServiceCidrs) -> Vec<String> {
        cidrs.problems().iter().map(Problem::to_string).collect()
    }

    fn named(texts: &[&str]) -> BTreeSet<Cidr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn networks_of_the_option_and_of_all_objects_are_in_force() {
        let mut cidrs = ServiceCidrs::default();
        let option = named(&["10.96.0.0/16"]);
        assert_eq!(texts(&cidrs.in_force(&option)), ["10.96.0.0/16"]);
        assert!(cidrs.set("b".to_owned(), object(&["10.97.0.0/16", "fd00:97::/112"])));
        assert!(!cidrs.set("b".to_owned(), object(&["10.97.0.0/16", "fd00:97::/112"])));
        assert!(cidrs.set("a".to_owned(), object(&["10.97.0.0/16"])));
        let all = ["10.96.0.0/16", "10.97.0.0/16", "fd00:97::/112"];
        assert_eq!(texts(&cidrs.in_force(&option)), all);
        // A network of two objects stays while one of them exists.
        assert!(cidrs.set("b".to_owned(), None));
        assert_eq!(texts(&cidrs.in_force(&option)), all[..2]);
        assert!(cidrs.set("a".to_owned(), None));
        assert!(!cidrs.set("a".to_owned(), None));
        assert_eq!(texts(&cidrs.in_force(&option)), all[..1]);
        assert_eq!(messages(&cidrs), [""; 0]);
    }

    #[test]
    fn invalid_service_cidrs_are_problems() {
        let mut cidrs = ServiceCidrs::default();
        let malformed = [
            "10.96.0.0",
            "10.96.0.1/16",
            "0.0.0.0/0",
            "fd00::/32",
            "10.97.0.0/16",
        ];
        cidrs.set("x".to_owned(), object(&malformed));
        assert_eq!(texts(&cidrs.in_force(&BTreeSet::new())), ["10.97.0.0/16"]);
        let messages = messages(&cidrs);
        assert_eq!(messages.len(), 4, "{messages:#?}");
        for (cidr, fault) in [
            ("10.96.0.0", "write an address, a slash"),
            (
                "10.96.0.1/16",
                "it is an address of the network 10.96.0.0/16: write the network",
            ),
            ("0.0.0.0/0", "use a prefix of at least 8 bits"),
            ("fd00::/32", "use a prefix of at least 64 bits"),
        ] {
            let is_it =
                |message: &&String| message.contains(&format!("\"{cidr}\"")) && message.contains(fault);
            let found = messages.iter().find(is_it);
            assert!(
                found.is_some_and(|found| found.starts_with("ServiceCIDR x: spec.cidrs")),
                "{cidr}: {messages:#?}"
            );
        }
    }

    #[test]
    fn service_cidrs_above_the_limit_are_problems() {
        let mut cidrs = ServiceCidrs::default();
        let many: Vec<String> = (0..10).map(|n| format!("10.{n}.0.0/16")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        cidrs.set("x".to_owned(), object(&many));
        cidrs.set("y".to_owned(), object(&["10.3.0.0/16", "fd00::/112"]));
        let in_force = texts(&cidrs.in_force(&BTreeSet::new()));
        assert_eq!(in_force.len(), 9, "{in_force:?}");
        assert_eq!(in_force.last().map(String::as_str), Some("fd00::/112"));
        let messages = messages(&cidrs);
        assert_eq!(messages.len(), 2, "{messages:#?}");
        let fault = "there are 8 other IPv4 Service CIDRs, which is the maximum: remove one";
        assert!(
            messages.iter().all(|message| message.contains(fault)),
            "{messages:#?}"
        );
    }

    #[test]
    fn a_service_cidr_that_overlaps_with_pods_is_not_in_force() {
        let mut cidrs = ServiceCidrs::default();
        let option = named(&["10.96.0.0/16", "fd00:96::/112"]);
        for (spec, in_force, overlap) in [
            ("{podCIDR: 10.97.1.0/24}", 2, None),
            ("{podCIDR: 10.96.1.0/24}", 1, Some("10.96.1.0/24")),
            (
                "{podCIDRs: [10.0.0.0/8, 'fd00:97::/64'], podCIDR: 10.0.0.0/8}",
                1,
                Some("10.0.0.0/8"),
            ),
            (
                "{podCIDRs: [10.97.0.0/24, 'fd00:96::/64']}",
                1,
                Some("fd00:96::/64"),
            ),
            ("{podCIDR: x}", 2, None),
        ] {
            cidrs.set_node("n", Some(&node(spec)));
            assert_eq!(cidrs.in_force(&option).len(), in_force, "{spec}");
            let messages = messages(&cidrs);
            assert_eq!(
                messages.len(),
                usize::from(overlap.is_some()),
                "{spec}: {messages:#?}"
            );
            let expected =
                overlap.map(|overlap| format!("Node n: its Pod network {overlap} and the Service CIDR"));
            assert!(
                expected.is_none_or(|expected| messages[0].contains(&expected)),
                "{messages:#?}"
            );
        }
        assert!(cidrs.set_node("n", Some(&node("{podCIDR: 10.96.1.0/24}"))));
        assert!(!cidrs.set_node("n", Some(&node("{podCIDR: 10.96.1.0/24}"))));
        assert!(cidrs.set_node("n", None));
        assert!(!cidrs.set_node("n", None));
        assert_eq!(cidrs.in_force(&option), option);
    }
}
