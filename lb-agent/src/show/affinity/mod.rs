//! Which backend clients of Services with session affinity stay with: shown, set, forgotten.

mod arguments;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use anyhow::Context as _;
use lb_common::layout::{
    Address4, Address6, Affinity, AffinityKey, Backend, BackendId, ServiceId, backend_flags, backend_state,
    cookie, halves,
};
use serde::Serialize;

pub use self::arguments::AffinityCommand;
use self::arguments::{AffinityFilter, AffinityPinArguments};
use super::names::{Client, ServiceFilter, ServicePorts};
use super::rows::{end, state_of};
use crate::arguments::PinArguments;
use crate::datapath::clock::Clock;
use crate::datapath::live::{LiveFamily, LiveMaps};
use crate::datapath::pins::Pins;
use crate::maps::{BackendState, MapError};
use crate::output::{self, Table};
use crate::privileges;

/// A client that stays with a backend.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The Service's port.
    pub service: String,
    /// Its id in the kernel.
    pub service_id: ServiceId,
    /// The client.
    pub client: Client,
    /// The backend that it was sent to; none if its row belongs to another endpoint by now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<SocketAddr>,
    /// The state of the backend.
    pub backend_state: BackendState,
    /// Whether the client's next connection goes there.
    pub usable: bool,
    /// Seconds since the client's last connection.
    pub idle_seconds: u64,
    /// Seconds that it stays if it opens no other; 0 if it may go elsewhere now.
    pub left_seconds: u64,
}

/// Why a client cannot be sent to a backend.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// No service port matches.
    #[error(transparent)]
    Unknown(#[from] super::names::UnknownService),
    /// A Service has several ports of that name or number.
    #[error("{service} means several ports ({ports}): name one as NAMESPACE/NAME:PORT")]
    Ambiguous {
        /// What was given.
        service: ServiceFilter,
        /// Those that match.
        ports: String,
    },
    /// The Service has no session affinity.
    #[error("{service} has no session affinity: set `sessionAffinity: ClientIP` in the Service")]
    NoAffinity {
        /// The service port.
        service: ServiceFilter,
    },
    /// The backend is none that new connections may go to.
    #[error("{backend} is no active backend of {service}; those are: {active}")]
    NoBackend {
        /// The service port.
        service: ServiceFilter,
        /// What was given.
        backend: IpAddr,
        /// Those that there are.
        active: String,
    },
    /// Client and backend are of different IP versions.
    #[error("{client} and {backend} are not of the same IP version")]
    Families {
        /// The client.
        client: Client,
        /// The backend.
        backend: IpAddr,
    },
    /// A map.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// Executes a command.
pub fn run(command: &AffinityCommand) -> anyhow::Result<ExitCode> {
    privileges::require("affinity", &privileges::MAPS)?;
    let pins = match command {
        AffinityCommand::List(arguments) => &arguments.show.pins,
        AffinityCommand::Pin(arguments) => &arguments.pins,
        AffinityCommand::Clear(arguments) => &arguments.pins,
    };
    let mut maps = open(pins)?;
    let clock = Clock::read().context("cannot read the clock")?;
    match command {
        AffinityCommand::List(arguments) => {
            let which = Which::new(&arguments.which, &ServicePorts::read(&maps)?)?;
            let rows = list(&maps, clock, &which)?;
            output::print(arguments.show.output, &rows, |rows| table(rows))?;
        }
        AffinityCommand::Pin(AffinityPinArguments {
            service,
            client,
            backend,
            ..
        }) => {
            let row = pin(&mut maps, clock, service, *client, *backend)?;
            output::say(&format!(
                "the next connection of {client} to {service} goes to {row}"
            ))?;
        }
        AffinityCommand::Clear(arguments) => {
            let which = Which::new(&arguments.which, &ServicePorts::read(&maps)?)?;
            let cleared = clear(&mut maps, &which)?;
            output::say(&format!("rows removed: {cleared}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn open(pins: &PinArguments) -> anyhow::Result<LiveMaps> {
    let pins = Pins::new(&pins.pin_path);
    LiveMaps::open(&pins.maps()).with_context(|| pins.nobody_ran())
}

/// Which rows are meant.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Which {
    services: Option<BTreeSet<ServiceId>>,
    client: Option<Client>,
}

impl Which {
    /// Those that were asked for.
    ///
    /// # Errors
    /// If there is no such Service.
    pub fn new(filter: &AffinityFilter, ports: &ServicePorts) -> Result<Self, super::names::UnknownService> {
        let of_service = |wanted: &ServiceFilter| ports.require(wanted);
        Ok(Self {
            services: filter.service.as_ref().map(of_service).transpose()?,
            client: filter.client,
        })
    }

    fn matches<A: LiveFamily>(&self, key: &AffinityKey<A>) -> bool {
        self.services
            .as_ref()
            .is_none_or(|services| services.contains(&key.service))
            && self.client.is_none_or(|client| client == client_of(key))
    }
}

/// The rows that match, sorted.
///
/// # Errors
/// If a map cannot be read.
pub fn list(maps: &LiveMaps, clock: Clock, which: &Which) -> Result<Vec<Row>, MapError> {
    let ports = ServicePorts::read(maps)?;
    let mut rows = list_family::<Address4>(maps, clock, which, &ports)?;
    rows.extend(list_family::<Address6>(maps, clock, which, &ports)?);
    rows.sort();
    Ok(rows)
}

fn list_family<A: LiveFamily>(
    maps: &LiveMaps,
    clock: Clock,
    which: &Which,
    ports: &ServicePorts,
) -> Result<Vec<Row>, MapError> {
    let rows = A::rows(maps);
    let mut found = Vec::new();
    for (key, known) in rows.affinities()? {
        if which.matches(&key) {
            let backend = rows.backend(known.backend)?;
            found.push(row(&key, &known, backend.as_ref(), clock, ports));
        }
    }
    Ok(found)
}

fn row<A: LiveFamily>(
    key: &AffinityKey<A>,
    known: &Affinity,
    backend: Option<&Backend<A>>,
    clock: Clock,
    ports: &ServicePorts,
) -> Row {
    let backend = backend.filter(|backend| backend.generation == known.generation);
    let lifetime = ports
        .0
        .get(&key.service)
        .map_or(0, |port| u64::from(port.affinity_seconds));
    let idle_seconds = clock.seconds_since(known.last_used);
    let left_seconds = lifetime.saturating_sub(idle_seconds);
    Row {
        service: ports.name(key.service),
        service_id: key.service,
        client: client_of(key),
        backend: backend.map(|backend| end(backend.address, backend.port)),
        backend_state: backend.map_or(BackendState::Gone, |backend| state_of(backend.state)),
        usable: left_seconds != 0 && backend.is_some_and(is_choosable),
        idle_seconds,
        left_seconds,
    }
}

/// Whether new connections may go to a backend.
fn is_choosable<A>(backend: &Backend<A>) -> bool {
    const ANY: u8 = backend_flags::IN_CLUSTER | backend_flags::IN_LOCAL;
    backend.state == backend_state::ACTIVE && backend.flags & ANY != 0
}

fn client_of<A: LiveFamily>(key: &AffinityKey<A>) -> Client {
    match cookie(key.namespace) {
        0 => Client::Address(key.client.into()),
        cookie => Client::Namespace(cookie),
    }
}

/// Lets a client's next connection to a service port go to a backend; says which.
///
/// # Errors
/// If there is no such port, it has no affinity, or the backend is none of its own.
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

/// A row to be written.
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

    /// The row of the backend.
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

/// Forgets the rows that match; says how many.
///
/// # Errors
/// If a map cannot be read or written.
pub fn clear(maps: &mut LiveMaps, which: &Which) -> Result<usize, MapError> {
    Ok(clear_family::<Address4>(maps, which)? + clear_family::<Address6>(maps, which)?)
}

fn clear_family<A: LiveFamily>(maps: &mut LiveMaps, which: &Which) -> Result<usize, MapError> {
    let rows = A::rows_mut(maps);
    let keys: Vec<_> = rows
        .affinities()?
        .into_keys()
        .filter(|key| which.matches(key))
        .collect();
    for key in &keys {
        rows.remove_affinity(key)?;
    }
    Ok(keys.len())
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(&["service", "client", "backend", "state", "idle", "left", "usable"]);
    for row in rows {
        table.row([
            row.service.clone(),
            row.client.to_string(),
            row.backend
                .map_or_else(|| "-".to_owned(), |backend| backend.to_string()),
            row.backend_state.to_string(),
            format!("{} s", row.idle_seconds),
            format!("{} s", row.left_seconds),
            if row.usable { "yes" } else { "no" }.to_owned(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use lb_common::layout::Port;

    use super::super::names::NamedPort;
    use super::*;

    const CLOCK: Clock = Clock {
        jiffies: 1_000_000,
        jiffies_per_second: 100,
    };

    fn backend(last: u8, state: u8, flags: u8) -> Backend<Address4> {
        Backend {
            address: Address4::from_bytes([10, 1, 0, last]),
            port: Port::new(8080),
            state,
            flags,
            generation: 2,
            service: 1,
        }
    }

    fn ports() -> ServicePorts {
        let port = NamedPort {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            affinity_seconds: 60,
            ..NamedPort::default()
        };
        ServicePorts([(1, port)].into())
    }

    fn key(namespace: u64) -> AffinityKey<Address4> {
        AffinityKey {
            client: Address4::from_bytes(if namespace == 0 { [10, 1, 0, 9] } else { [0; 4] }),
            namespace: halves(namespace),
            service: 1,
        }
    }

    fn known(seconds_ago: u64) -> Affinity {
        Affinity {
            backend: 1,
            generation: 2,
            last_used: CLOCK.jiffies - seconds_ago * 100,
        }
    }

    #[test]
    fn a_backend_is_usable_while_it_is_active_and_the_time_has_not_passed() {
        let active = backend(5, backend_state::ACTIVE, backend_flags::IN_CLUSTER);
        let draining = backend(5, backend_state::DRAINING, 0);
        let other = Backend {
            generation: 3,
            ..active
        };
        for (row_backend, ago, usable, left, state) in [
            (active, 10, true, 50, BackendState::Active),
            (active, 60, false, 0, BackendState::Active),
            (active, 70, false, 0, BackendState::Active),
            (draining, 10, false, 50, BackendState::Draining),
            (other, 10, false, 50, BackendState::Gone),
        ] {
            let row = row(&key(0), &known(ago), Some(&row_backend), CLOCK, &ports());
            assert_eq!(
                (row.usable, row.left_seconds, row.idle_seconds, row.backend_state),
                (usable, left, ago, state),
                "{row_backend:?}"
            );
        }
    }

    #[test]
    fn clients_are_addresses_or_network_namespaces() {
        let active = backend(5, backend_state::ACTIVE, backend_flags::IN_CLUSTER);
        let of = |namespace| row(&key(namespace), &known(1), Some(&active), CLOCK, &ports());
        let text = table(&[of(0), of(77)]).to_string();
        assert!(text.contains("10.1.0.9 "), "{text}");
        assert!(text.contains("network namespace 77 "), "{text}");
        let which = Which {
            client: Some(Client::Namespace(77)),
            ..Which::default()
        };
        assert!(which.matches(&key(77)) && !which.matches(&key(0)));
    }

    #[test]
    fn only_backends_that_take_connections_are_pinned() {
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
                clock: CLOCK,
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
                    "{other} is no active backend of default/web:80; those are: 10.1.0.5"
                ))
            );
        }
    }
}
