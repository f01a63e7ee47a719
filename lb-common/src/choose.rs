//! Which frontend a packet or a socket means, and which of its backends it gets.

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
    /// Where packets from there enter the node's stack: one of [`hook`].
    #[inline(always)]
    pub const fn hook(self) -> u8 {
        match self {
            Self::Inside => hook::INGRESS_INSIDE,
            Self::Outside => hook::INGRESS_OUTSIDE,
        }
    }
}

/// The frontend with this address, or the wildcard row of its address.
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

/// Whether clients of this origin use the backends of this node only.
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

/// How often another slot is tried where a slot and its row disagree, which they do for an instant
/// when backends are replaced.
const ATTEMPTS: u32 = 4;

/// A backend of a service's region: that at the position which `hash` names, unless it is just
/// being replaced. 0 if there is none. A region that was read long ago may be another service's by
/// now.
///
/// Like [`affinity_backend`] it returns a number only: of an optional backend LLVM would carry the
/// undefined half around, which the verifier refuses ("R1 !read_ok", Linux 6.18).
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

/// What [`affinity_backend`] says of a client whose affinity has ended: its next backend is a
/// matter of chance, since the hash of its address would mostly name the same one again.
pub const ENDED: BackendId = BackendId::MAX;

/// The backend that a client stays with, if it may still choose it; 0 if there is none, or
/// [`ENDED`].
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

/// Remembers the backend that a client stays with, or that it has used it again.
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
