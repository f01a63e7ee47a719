//! Converts between rows of the maps and the agent's types.

use std::net::IpAddr;

use aya::maps::lpm_trie::Key;
use lb_common::layout::{self, ServiceName, SourceRange, backend_flags, backend_state};
use lb_common::net::{Port, protocol};
use lb_common::pod::PlainAddress;

use crate::maps::{Backend, BackendState, FrontendKey, Protocol};
use crate::network::Cidr;

/// The key of a frontend row. `address` is the address of `key`.
pub(super) fn frontend_row<A>(key: &FrontendKey, address: A) -> layout::FrontendKey<A> {
    let (port, protocol) = match key {
        FrontendKey::Port(_, port, protocol) => (*port, protocol.number()),
        FrontendKey::Wildcard(_) => (0, 0),
    };
    layout::FrontendKey {
        address,
        port: Port::new(port),
        protocol,
        pad: 0,
    }
}

/// Converts the key of a frontend row. `None` for a protocol that this agent does not write.
pub(super) fn frontend_key<A: Into<IpAddr>>(key: layout::FrontendKey<A>) -> Option<FrontendKey> {
    let address = key.address.into();
    Some(match key.protocol {
        0 => FrontendKey::Wildcard(address),
        protocol::TCP => FrontendKey::Port(address, key.port.get(), Protocol::Tcp),
        protocol::UDP => FrontendKey::Port(address, key.port.get(), Protocol::Udp),
        protocol::SCTP => FrontendKey::Port(address, key.port.get(), Protocol::Sctp),
        _ => return None,
    })
}

/// The key of a network in a set. `address` is the address of `network`.
pub(super) fn range_key<A: PlainAddress>(set: u32, network: &Cidr, address: A) -> Key<SourceRange<A>> {
    let prefix = SourceRange::<A>::SET_BITS + u32::from(network.prefix());
    Key::new(
        prefix,
        SourceRange {
            set,
            network: address,
        },
    )
}

/// The set and the network of a row. `None` if this agent does not write such rows.
pub(super) fn source_range<A: PlainAddress + Into<IpAddr>>(key: &Key<SourceRange<A>>) -> Option<(u32, Cidr)> {
    let SourceRange { set, network } = key.data();
    let prefix = key.prefix_len().checked_sub(SourceRange::<A>::SET_BITS)?;
    Some((set, Cidr::new(network.into(), u8::try_from(prefix).ok()?)?))
}

/// The row of a name. A name that is too long is truncated, but Kubernetes does not allow such
/// names.
pub(super) fn service_name(name: &str) -> ServiceName {
    let mut text = [0; ServiceName::LENGTH];
    for (target, byte) in text.iter_mut().zip(name.bytes()) {
        *target = byte;
    }
    ServiceName { text }
}

/// The text of a service port's name: `NAMESPACE/NAME/PORT/PROTOCOL`.
pub(super) fn text_of(name: &ServiceName) -> String {
    let text = name.text.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// The row of a backend. `address` is the address of `backend`.
pub(super) fn backend_row<A>(backend: &Backend, address: A) -> layout::Backend<A> {
    layout::Backend {
        address,
        port: Port::new(backend.port),
        state: match backend.state {
            BackendState::Gone => backend_state::GONE,
            BackendState::Active => backend_state::ACTIVE,
            BackendState::Draining => backend_state::DRAINING,
            BackendState::Absent => backend_state::ABSENT,
        },
        flags: [
            (backend.local, backend_flags::LOCAL),
            (backend.in_cluster, backend_flags::IN_CLUSTER),
            (backend.in_local, backend_flags::IN_LOCAL),
        ]
        .into_iter()
        .filter(|(is_set, _)| *is_set)
        .fold(0, |flags, (_, flag)| flags | flag),
        generation: backend.generation,
        service: backend.service,
    }
}

/// Converts a row's state.
pub(crate) fn backend_state_of(state: u8) -> BackendState {
    match state {
        backend_state::ACTIVE => BackendState::Active,
        backend_state::DRAINING => BackendState::Draining,
        backend_state::ABSENT => BackendState::Absent,
        _ => BackendState::Gone,
    }
}

/// Converts a backend row. `None` if it was never written.
pub(super) fn backend<A: Into<IpAddr>>(row: layout::Backend<A>) -> Option<Backend> {
    (row.generation != 0).then(|| Backend {
        address: row.address.into(),
        port: row.port.get(),
        state: backend_state_of(row.state),
        local: row.flags & backend_flags::LOCAL != 0,
        in_cluster: row.flags & backend_flags::IN_CLUSTER != 0,
        in_local: row.flags & backend_flags::IN_LOCAL != 0,
        generation: row.generation,
        service: row.service,
    })
}
