//! The health check ports of Services: one listener for each port and NodePort address. Listeners
//! are started and stopped as these change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::connections::Connections;
use super::http::{self, Handler};
use super::{Health, answer};
use crate::desired::{HealthCheck, NamespacedName};
use crate::network::Family;

/// The health checks that load balancers may request.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Checks {
    /// The node's addresses that accept NodePorts.
    pub addresses: BTreeSet<IpAddr>,
    /// The Services with a health check port.
    pub services: BTreeMap<NamespacedName, HealthCheck>,
}

/// A health check at one address.
type Listener = (SocketAddr, NamespacedName);

impl Checks {
    fn listeners(&self) -> BTreeSet<Listener> {
        let listeners = |(name, check): (&NamespacedName, &HealthCheck)| {
            let HealthCheck { port, families, .. } = *check;
            let name = name.clone();
            let addresses = self.addresses.iter();
            let served = addresses.filter(move |address| families.get(Family::of(**address)));
            served.map(move |address| (SocketAddr::new(*address, port), name.clone()))
        };
        self.services.iter().flat_map(listeners).collect()
    }

    /// Returns the number of endpoints that a load balancer reaches through this address. 0 for a
    /// Service that was just removed.
    fn local_endpoints(&self, (address, name): &Listener) -> usize {
        let family = Family::of(address.ip());
        let check = self.services.get(name);
        check.map_or(0, |check| check.local_endpoints.get(family))
    }
}

/// Serves the health checks until the sender of `checks` is dropped.
pub(super) async fn serve(
    mut checks: watch::Receiver<Checks>,
    health: Arc<Health>,
    connections: &Arc<Connections>,
) {
    let mut servers: BTreeMap<Listener, JoinHandle<()>> = BTreeMap::new();
    loop {
        let wanted = checks.borrow_and_update().listeners();
        // Unwanted listeners are stopped first, because another Service may have taken over the
        // port.
        for (_, server) in servers.extract_if(.., |listener, _| !wanted.contains(listener)) {
            server.abort();
            // The result does not matter: the task has ended.
            let _ = server.await;
        }
        for listener in wanted {
            let (address, name) = listener.clone();
            servers.entry(listener.clone()).or_insert_with(|| {
                let what = format!("the health check of Service {name}");
                tokio::spawn(http::serve(
                    what,
                    address,
                    handler(listener, checks.clone(), health.clone()),
                    connections.clone(),
                ))
            });
        }
        if checks.changed().await.is_err() {
            return;
        }
    }
}

fn handler(listener: Listener, checks: watch::Receiver<Checks>, health: Arc<Health>) -> Handler {
    Arc::new(move |_path| {
        let local_endpoints = checks.borrow().local_endpoints(&listener);
        let is_healthy = health.pulse().is_healthy(Instant::now());
        let answer = answer::check(&listener.1, local_endpoints, is_healthy);
        Box::pin(std::future::ready(answer))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::PerFamily;

    fn name(name: &str) -> NamespacedName {
        NamespacedName {
            namespace: "default".to_owned(),
            name: name.to_owned(),
        }
    }

    #[test]
    fn every_port_is_served_at_every_address_for_its_family() {
        let check = |port, ipv4, ipv6| HealthCheck {
            port,
            families: PerFamily {
                ipv4: true,
                ipv6: port != 32_002,
            },
            local_endpoints: PerFamily { ipv4, ipv6 },
        };
        let checks = Checks {
            addresses: ["192.0.2.1", "2001:db8::1"]
                .map(|address| address.parse().unwrap())
                .into(),
            services: [
                (name("api"), check(32_000, 1, 0)),
                (name("web"), check(32_001, 2, 3)),
                (name("web4"), check(32_002, 4, 0)),
            ]
            .into(),
        };
        let found: Vec<_> = checks
            .listeners()
            .iter()
            .map(|listener| {
                format!(
                    "{} {} {}",
                    listener.0,
                    listener.1,
                    checks.local_endpoints(listener)
                )
            })
            .collect();
        assert_eq!(
            found,
            [
                "192.0.2.1:32000 default/api 1",
                "192.0.2.1:32001 default/web 2",
                "192.0.2.1:32002 default/web4 4",
                "[2001:db8::1]:32000 default/api 0",
                "[2001:db8::1]:32001 default/web 3",
            ]
        );
        let removed = (SocketAddr::from(([192, 0, 2, 1], 32_000)), name("gone"));
        assert_eq!(checks.local_endpoints(&removed), 0);
    }
}
