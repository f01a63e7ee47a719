//! `lb-agent affinity pin`: sends a client's next connection to a backend.

use std::net::{IpAddr, SocketAddr};

use lb_common::layout::{Affinity, AffinityKey, Backend, BackendId, ServiceId, halves};
use lb_common::net::{Address4, Address6};

use super::client::Client;
use super::list::is_choosable;
use crate::datapath::clock::Clock;
use crate::datapath::live::{LiveFamily, LiveMaps};
use crate::inspect::{ServiceFilter, ServicePorts, UnknownService, end};
use crate::maps::MapError;

/// Why a client cannot be sent to a backend.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// No service port matches.
    #[error(transparent)]
    Unknown(#[from] UnknownService),
    /// A Service has several ports of that name or number.
    #[error("{service} matches several ports ({ports}): name one as NAMESPACE/NAME:PORT")]
    Ambiguous {
        /// The filter that was given.
        service: ServiceFilter,
        /// The ports that match.
        ports: String,
    },
    /// The Service has no session affinity.
    #[error("{service} has no session affinity: set `sessionAffinity: ClientIP` in the Service")]
    NoAffinity {
        /// The service port.
        service: ServiceFilter,
    },
    /// New connections may not go to the backend.
    #[error("{backend} is not an active backend of {service}; active backends: {active}")]
    NoBackend {
        /// The service port.
        service: ServiceFilter,
        /// The address that was given.
        backend: IpAddr,
        /// The active backends.
        active: String,
    },
    /// Client and backend have different IP versions.
    #[error("{client} and {backend} have different IP versions")]
    Families {
        /// The client.
        client: Client,
        /// The backend.
        backend: IpAddr,
    },
    /// A map cannot be read or written.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// Sends a client's next connection to a service port to a backend. Returns the backend.
///
/// # Errors
/// If the port does not exist or has no affinity, or the backend is not one of its active backends.
pub fn pin(
    maps: &mut LiveMaps,
    clock: Clock,
    service: &ServiceFilter,
    client: Client,
    backend: IpAddr,
) -> Result<SocketAddr, PinError> {
    let ports = ServicePorts::read(maps)?;
    let matching = ports.require(service)?;
    let mut ids = matching.iter();
    let (Some(&id), None) = (ids.next(), ids.next()) else {
        let names = matching.iter().filter_map(|id| ports.0.get(id));
        let names: Vec<String> = names.map(|port| format!("{port}/{}", port.protocol)).collect();
        return Err(PinError::Ambiguous {
            service: service.clone(),
            ports: names.join(", "),
        });
    };
    if ports.0.get(&id).is_none_or(|port| port.affinity_seconds == 0) {
        return Err(PinError::NoAffinity {
            service: service.clone(),
        });
    }
    let pin = Pin {
        service,
        id,
        client,
        backend,
        clock,
    };
    match backend {
        IpAddr::V4(_) => pin.write::<Address4>(maps),
        IpAddr::V6(_) => pin.write::<Address6>(maps),
    }
}

/// A row to write.
struct Pin<'a> {
    service: &'a ServiceFilter,
    id: ServiceId,
    client: Client,
    backend: IpAddr,
    clock: Clock,
}

impl Pin<'_> {
    fn write<A: LiveFamily>(&self, maps: &mut LiveMaps) -> Result<SocketAddr, PinError> {
        let rows = A::rows_mut(maps);
        let key = self.key::<A>()?;
        let (id, backend) = self.choose(rows.backends()?)?;
        let affinity = Affinity {
            backend: id,
            generation: backend.generation,
            last_used: self.clock.passed_jiffies(),
        };
        rows.set_affinity(&key, &affinity)?;
        Ok(end(backend.address, backend.port))
    }

    fn key<A: LiveFamily>(&self) -> Result<AffinityKey<A>, PinError> {
        let (client, namespace) = match self.client {
            Client::Address(address) => {
                let families = PinError::Families {
                    client: self.client,
                    backend: self.backend,
                };
                (A::of(address).ok_or(families)?, 0)
            }
            Client::Namespace(cookie) => (A::default(), cookie),
        };
        Ok(AffinityKey {
            client,
            namespace: halves(namespace),
            service: self.id,
        })
    }

    /// The id and row of the backend.
    fn choose<A: LiveFamily>(
        &self,
        rows: impl IntoIterator<Item = (BackendId, Backend<A>)>,
    ) -> Result<(BackendId, Backend<A>), PinError> {
        let own = rows
            .into_iter()
            .filter(|(_, row)| row.service == self.id && is_choosable(row));
        let own: Vec<_> = own.collect();
        let found = own.iter().find(|(_, row)| row.address.into() == self.backend);
        found.copied().ok_or_else(|| {
            let active: Vec<String> = own
                .iter()
                .map(|(_, row)| row.address.into().to_string())
                .collect();
            PinError::NoBackend {
                service: self.service.clone(),
                backend: self.backend,
                active: if active.is_empty() {
                    "none".to_owned()
                } else {
                    active.join(", ")
                },
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use lb_common::layout::{backend_flags, backend_state};
    use lb_common::net::Port;

    use super::*;

    #[test]
    fn only_backends_that_accept_connections_can_be_pinned() {
        let backend = |last, state, flags| Backend {
            address: Address4::from_bytes([10, 1, 0, last]),
            port: Port::new(8080),
            state,
            flags,
            generation: 2,
            service: 1,
        };
        let clock = Clock {
            jiffies: 1_000_000,
            jiffies_per_second: 100,
        };
        let rows = [
            (1, backend(5, backend_state::ACTIVE, backend_flags::IN_LOCAL)),
            (2, backend(6, backend_state::DRAINING, 0)),
            (3, backend(7, backend_state::ACTIVE, 0)),
        ];
        let choose = |text: &str| {
            let service = "default/web:80".parse().unwrap();
            let pin = Pin {
                service: &service,
                id: 1,
                client: Client::Namespace(7),
                backend: text.parse().unwrap(),
                clock,
            };
            pin.choose(rows)
                .map(|(id, _)| id)
                .map_err(|error| error.to_string())
        };
        assert_eq!(choose("10.1.0.5"), Ok(1));
        for other in ["10.1.0.6", "10.1.0.7", "10.1.0.8"] {
            assert_eq!(
                choose(other),
                Err(format!(
                    "{other} is not an active backend of default/web:80; active backends: 10.1.0.5"
                ))
            );
        }
    }
}
