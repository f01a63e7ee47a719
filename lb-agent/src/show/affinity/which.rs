//! Selects affinity rows.

use std::collections::BTreeSet;

use lb_common::layout::{AffinityKey, ServiceId};

use super::arguments::AffinityFilter;
use super::client::Client;
use crate::datapath::live::LiveFamily;
use crate::inspect::{ServiceFilter, ServicePorts, UnknownService};

/// Selects affinity rows by Service and client. The default selects all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Which {
    services: Option<BTreeSet<ServiceId>>,
    client: Option<Client>,
}

impl Which {
    /// The rows that the arguments select.
    ///
    /// # Errors
    /// If no service port matches.
    pub fn new(filter: &AffinityFilter, ports: &ServicePorts) -> Result<Self, UnknownService> {
        let of_service = |wanted: &ServiceFilter| ports.require(wanted);
        Ok(Self {
            services: filter.service.as_ref().map(of_service).transpose()?,
            client: filter.client,
        })
    }

    pub(super) fn matches<A: LiveFamily>(&self, key: &AffinityKey<A>) -> bool {
        self.services
            .as_ref()
            .is_none_or(|services| services.contains(&key.service))
            && self.client.is_none_or(|client| client == Client::of(key))
    }
}

#[cfg(test)]
mod tests {
    use lb_common::layout::halves;
    use lb_common::net::Address4;

    use super::*;

    #[test]
    fn a_client_filter_excludes_other_clients() {
        let key = |namespace| AffinityKey {
            client: Address4::default(),
            namespace: halves(namespace),
            service: 1,
        };
        let which = Which {
            client: Some(Client::Namespace(77)),
            ..Which::default()
        };
        assert!(which.matches(&key(77)) && !which.matches(&key(0)));
    }
}
