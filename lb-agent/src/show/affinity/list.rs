//! `lb-agent affinity list`: shows which backend each client stays with.

use std::net::SocketAddr;

use lb_common::layout::{Affinity, AffinityKey, Backend, ServiceId, backend_flags, backend_state};
use lb_common::net::{Address4, Address6};
use serde::Serialize;

use super::client::Client;
use super::which::Which;
use crate::datapath::clock::Clock;
use crate::datapath::convert::backend_state_of;
use crate::datapath::live::{LiveFamily, LiveMaps};
use crate::inspect::{ServicePorts, end};
use crate::maps::{BackendState, MapError};
use crate::output::Table;

/// A client that stays with a backend.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The Service port.
    pub service: String,
    /// Its id in the kernel.
    pub service_id: ServiceId,
    /// The client.
    pub client: Client,
    /// The backend that the client was sent to; `None` if the backend's row belongs to another
    /// endpoint now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<SocketAddr>,
    /// The state of the backend.
    pub backend_state: BackendState,
    /// Whether the client's next connection goes to that backend.
    pub usable: bool,
    /// Seconds since the client's last connection.
    pub idle_seconds: u64,
    /// Seconds until the affinity times out if the client opens no other connection; 0 if it has
    /// timed out.
    pub left_seconds: u64,
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
        client: Client::of(key),
        backend: backend.map(|backend| end(backend.address, backend.port)),
        backend_state: backend.map_or(BackendState::Gone, |backend| backend_state_of(backend.state)),
        usable: left_seconds != 0 && backend.is_some_and(is_choosable),
        idle_seconds,
        left_seconds,
    }
}

/// Returns true if new connections may go to a backend.
pub(super) fn is_choosable<A>(backend: &Backend<A>) -> bool {
    const ANY: u8 = backend_flags::IN_CLUSTER | backend_flags::IN_LOCAL;
    backend.state == backend_state::ACTIVE && backend.flags & ANY != 0
}

/// A table with one line for each row.
pub(super) fn table(rows: &[Row]) -> Table {
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
    use lb_common::layout::halves;
    use lb_common::net::Port;

    use super::*;
    use crate::inspect::NamedPort;

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
    fn a_backend_is_usable_while_active_and_before_the_timeout() {
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
    fn the_table_shows_addresses_and_network_namespaces() {
        let active = backend(5, backend_state::ACTIVE, backend_flags::IN_CLUSTER);
        let of = |namespace| row(&key(namespace), &known(1), Some(&active), CLOCK, &ports());
        let text = table(&[of(0), of(77)]).to_string();
        assert!(text.contains("10.1.0.9 "), "{text}");
        assert!(text.contains("network namespace 77 "), "{text}");
    }
}
