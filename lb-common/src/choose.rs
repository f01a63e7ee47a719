//! Finds the frontend for a packet or a socket, and chooses one of its backends.

use crate::address::Address;
use crate::hash;
use crate::layout::{
    Affinity, AffinityKey, BackendId, Frontend, FrontendKey, Region, ServiceId, backend_flags, backend_state,
    frontend_flags, hook,
};
use crate::net::Port;
use crate::reason::Reason;
use crate::tables::Tables;

/// Where a client is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A Pod or a process of this node.
    Inside,
    /// Anywhere else.
    Outside,
}

impl Origin {
    /// The [`hook`] at which packets of this origin enter the node's stack.
    #[inline(always)]
    pub const fn hook(self) -> u8 {
        match self {
            Self::Inside => hook::INGRESS_INSIDE,
            Self::Outside => hook::INGRESS_OUTSIDE,
        }
    }
}

/// Finds the frontend with this address, port and protocol, else the wildcard row of the address.
#[inline(always)]
pub fn find_frontend<A: Address>(
    tables: &impl Tables<A>,
    address: A,
    port: Port,
    protocol: u8,
) -> Option<Frontend> {
    let mut key = FrontendKey {
        address,
        port,
        protocol,
        pad: 0,
    };
    tables.frontend(&key).or_else(|| {
        key.port = Port::default();
        key.protocol = 0;
        tables.frontend(&key)
    })
}

/// Returns true if clients of this origin use only the backends of this node.
#[inline(always)]
pub fn is_local_only(frontend: &Frontend, origin: Origin) -> bool {
    let flag = match origin {
        Origin::Inside => frontend_flags::INSIDE_LOCAL,
        Origin::Outside => frontend_flags::OUTSIDE_LOCAL,
    };
    frontend.flags & flag != 0
}

/// The slots that clients of this origin choose from.
#[inline(always)]
pub fn region(frontend: &Frontend, origin: Origin) -> Result<Region, Reason> {
    let list = if is_local_only(frontend, origin) {
        frontend.local
    } else {
        frontend.cluster
    };
    match (list.length, frontend.cluster.length) {
        (0, 0) => Err(Reason::NoEndpoint),
        (0, _) => Err(Reason::NoLocalEndpoint),
        _ if origin == Origin::Outside && frontend.maglev.length != 0 => Ok(frontend.maglev),
        _ => Ok(list),
    }
}

/// Maximum number of slots to try. A slot and its backend row disagree for a moment while backends
/// are replaced.
const ATTEMPTS: u32 = 4;

/// Chooses a backend from a service's region: the one at the position that `hash` selects, or
/// another one if that one is just being replaced. Returns 0 if there is none. A region that was
/// read long ago may belong to another service by now, so the row's service is checked.
///
/// Like [`affinity_backend`] it returns only a number. For an optional backend, LLVM would carry
/// the undefined half around, which the verifier refuses ("R1 !read_ok", Linux 6.18).
#[inline(never)]
pub fn choose<A: Address>(
    tables: &impl Tables<A>,
    service: ServiceId,
    region: &Region,
    hash: u32,
) -> BackendId {
    let mut hash = hash;
    for _ in 0..ATTEMPTS {
        let position = (u64::from(hash) * u64::from(region.length)) >> 32;
        if let Some(slot) = tables.slot(region.base.wrapping_add(position as u32))
            && let Some(backend) = tables.backend(slot.backend)
            && backend.generation == slot.generation
            && backend.service == service
            && backend.state == backend_state::ACTIVE
        {
            return slot.backend;
        }
        hash = hash::next(hash);
    }
    0
}

/// Result of [`affinity_backend`] for a client whose affinity has timed out. Its next backend is
/// chosen at random, because the hash of its address would mostly select the same one again.
pub const ENDED: BackendId = BackendId::MAX;

/// The backend that a client stays with, if the client may still choose it. Returns 0 if there is
/// none, or [`ENDED`].
#[inline(never)]
pub fn affinity_backend<A: Address>(
    tables: &impl Tables<A>,
    key: &AffinityKey<A>,
    frontend: &Frontend,
    origin: Origin,
) -> BackendId {
    let Some(known) = tables.affinity(key) else {
        return 0;
    };
    let idle = tables.jiffies().wrapping_sub(known.last_used);
    if idle > u64::from(frontend.affinity_seconds) * u64::from(tables.settings().jiffies_per_second) {
        return ENDED;
    }
    let choosable = if is_local_only(frontend, origin) {
        backend_flags::IN_LOCAL
    } else {
        backend_flags::IN_CLUSTER
    };
    match tables.backend(known.backend) {
        Some(backend)
            if backend.generation == known.generation
                && backend.service == frontend.service
                && backend.state == backend_state::ACTIVE
                && backend.flags & choosable != 0 =>
        {
            known.backend
        }
        _ => 0,
    }
}

/// Records the backend that a client stays with, and the time of this use.
#[inline(never)]
pub fn record_affinity<A: Address>(
    tables: &impl Tables<A>,
    key: &AffinityKey<A>,
    backend: BackendId,
    generation: u32,
) {
    let last_used = tables.jiffies();
    tables.insert_affinity(
        key,
        &Affinity {
            backend,
            generation,
            last_used,
        },
    );
}
