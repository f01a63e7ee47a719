//! Service ports as named on the command line and in the kernel's maps.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use lb_common::layout::{Frontend, FrontendKey, ServiceId};

use crate::datapath::live::{LiveFamily, LiveMaps};
use crate::maps::MapError;

/// A service port in the kernel.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NamedPort {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Name of the port; empty if it has none.
    pub port: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Port numbers of the frontends.
    pub numbers: BTreeSet<u16>,
    /// Session affinity timeout in seconds; 0 without session affinity.
    pub affinity_seconds: u32,
}

impl NamedPort {
    /// Parses `NAMESPACE/NAME/PORT/PROTOCOL`.
    fn parse(text: &str) -> Self {
        let mut parts = text.split('/').map(str::to_owned);
        let mut part = || parts.next().unwrap_or_default();
        Self {
            namespace: part(),
            name: part(),
            port: part(),
            protocol: part(),
            ..Self::default()
        }
    }
}

impl fmt::Display for NamedPort {
    /// `NAMESPACE/NAME`, followed by `:PORT` if the port has a name.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)?;
        if !self.port.is_empty() {
            write!(formatter, ":{}", self.port)?;
        }
        Ok(())
    }
}

/// All service ports in the kernel.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServicePorts(pub BTreeMap<ServiceId, NamedPort>);

impl ServicePorts {
    /// Reads all service ports.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn read(maps: &LiveMaps) -> Result<Self, MapError> {
        let names = maps.names()?.into_iter();
        let mut ports = Self(names.map(|(id, name)| (id, NamedPort::parse(&name))).collect());
        ports.add_frontends(&maps.ipv4().frontends()?);
        ports.add_frontends(&maps.ipv6().frontends()?);
        Ok(ports)
    }

    fn add_frontends<A: LiveFamily>(&mut self, frontends: &BTreeMap<FrontendKey<A>, Frontend>) {
        for (key, row) in frontends {
            if let Some(port) = self.0.get_mut(&row.service) {
                port.numbers.insert(key.port.get());
                port.affinity_seconds = port.affinity_seconds.max(row.affinity_seconds);
            }
        }
    }

    /// The name of a service id; `service ID` if the maps have no name for it.
    pub fn name(&self, service: ServiceId) -> String {
        match self.0.get(&service) {
            Some(port) => port.to_string(),
            None => format!("service {service}"),
        }
    }

    /// The ids that match a filter.
    pub fn matching(&self, wanted: &ServiceFilter) -> BTreeSet<ServiceId> {
        let matching = self.0.iter().filter(|(_, port)| wanted.matches(port));
        matching.map(|(id, _)| *id).collect()
    }

    /// The ids that match a filter, at least one.
    ///
    /// # Errors
    /// If no service port in the kernel matches.
    pub fn require(&self, wanted: &ServiceFilter) -> Result<BTreeSet<ServiceId>, UnknownService> {
        let matching = self.matching(wanted);
        if matching.is_empty() {
            return Err(UnknownService(wanted.clone()));
        }
        Ok(matching)
    }
}

/// No service port matches.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the maps contain no Service {0}: see `lb-agent services`")]
pub struct UnknownService(pub ServiceFilter);

/// Selects service ports: `NAMESPACE/NAME` or `NAMESPACE/NAME:PORT`, with the name or number of the
/// port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceFilter {
    namespace: String,
    name: String,
    port: Option<String>,
}

impl ServiceFilter {
    fn matches(&self, named: &NamedPort) -> bool {
        let is_port = |port: &String| {
            *port == named.port || port.parse().is_ok_and(|number| named.numbers.contains(&number))
        };
        self.namespace == named.namespace && self.name == named.name && self.port.as_ref().is_none_or(is_port)
    }
}

impl fmt::Display for ServiceFilter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)?;
        match &self.port {
            Some(port) => write!(formatter, ":{port}"),
            None => Ok(()),
        }
    }
}

impl FromStr for ServiceFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (service, port) = match text.split_once(':') {
            Some((service, port)) => (service, Some(port.to_owned())),
            None => (text, None),
        };
        match service.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty()
                    && !name.is_empty()
                    && !name.contains('/')
                    && port.as_ref().is_none_or(|port| !port.is_empty()) =>
            {
                Ok(Self {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                    port,
                })
            }
            _ => Err("expected NAMESPACE/NAME or NAMESPACE/NAME:PORT".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports() -> ServicePorts {
        let mut web = NamedPort::parse("default/web/http/TCP");
        web.numbers = [80, 30080].into();
        let mut dns = NamedPort::parse("kube-system/dns//UDP");
        dns.numbers = [53].into();
        ServicePorts([(1, web), (2, dns)].into())
    }

    #[test]
    fn filters_match_ports_by_name_and_number() {
        for (text, expected) in [
            ("default/web", &[1][..]),
            ("default/web:http", &[1]),
            ("default/web:30080", &[1]),
            ("default/web:81", &[]),
            ("other/web", &[]),
            ("kube-system/dns:53", &[2]),
        ] {
            let filter: ServiceFilter = text.parse().unwrap();
            assert_eq!(filter.to_string(), text);
            let expected: BTreeSet<ServiceId> = expected.iter().copied().collect();
            assert_eq!(ports().matching(&filter), expected, "{text}");
        }
    }

    #[test]
    fn service_names_use_the_format_of_filters() {
        assert_eq!(ports().name(1), "default/web:http");
        assert_eq!(ports().name(2), "kube-system/dns");
        assert_eq!(ports().name(9), "service 9");
    }

    #[test]
    fn malformed_service_filters_are_rejected() {
        for text in ["", "web", "/web", "default/", "a/b/c", "default/web:"] {
            assert!(text.parse::<ServiceFilter>().is_err(), "{text}");
        }
    }
}
