//! Detects and repairs changes that another program made to the maps.

use std::collections::BTreeSet;

use super::Installer;
use super::tables::MapMirror;
use crate::maps::{Backend, BackendState, MapImage, MapOp, Maps};
use crate::network::Family;

/// The result of a comparison with the maps. Everything found was repaired, except for the
/// `errors`.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Repaired {
    /// Names of service ids that were missing, wrong or unknown to the agent.
    pub names: usize,
    /// Source ranges that were missing or unknown to the agent.
    pub source_ranges: usize,
    /// Frontend rows that were missing, wrong or unknown to the agent.
    pub frontends: usize,
    /// Regions whose slots were wrong.
    pub regions: usize,
    /// Backend rows that were missing, wrong or unknown to the agent.
    pub backends: usize,
    /// Writes that failed. The next comparison finds the same faults again.
    pub errors: Vec<String>,
}

impl Repaired {
    /// The number of faults.
    pub fn faults(&self) -> usize {
        self.names + self.source_ranges + self.frontends + self.regions + self.backends
    }
}

impl Installer {
    /// Compares the maps in `image` with what the agent wrote to them, and writes the differences.
    pub fn repair(&mut self, image: &MapImage, maps: &mut dyn Maps) -> Repaired {
        let mut repaired = Repaired::default();
        let backends = foreign_backends(&self.tables, image);
        for (family, id, backend) in &backends {
            // The agent does not own its slots and flows. They end, and the row's next endpoint
            // gets a new generation.
            self.tables.backends_mut(*family).note(*id, *backend);
        }
        let operations = [
            name_operations(&self.tables, image),
            backend_operations(&self.tables, image),
            region_operations(&self.tables, image),
            range_operations(&self.tables, image),
            frontend_operations(&self.tables, image),
        ];
        let counts = [
            &mut repaired.names,
            &mut repaired.backends,
            &mut repaired.regions,
            &mut repaired.source_ranges,
            &mut repaired.frontends,
        ];
        for (count, operations) in counts.into_iter().zip(operations) {
            for operation in operations {
                *count += 1;
                if let Err(error) = maps.apply(&operation) {
                    repaired.errors.push(crate::describe(&error));
                }
            }
        }
        repaired
    }
}

/// Rows that this agent never wrote, in the form that repairs them.
fn foreign_backends(tables: &MapMirror, image: &MapImage) -> Vec<(Family, u32, Backend)> {
    let of_family = |family| {
        let rows = image.backends(family).iter();
        let foreign = rows.filter(move |(id, _)| tables.backends(family).row(**id).is_none());
        foreign.map(move |(id, backend)| {
            (
                family,
                *id,
                Backend {
                    state: BackendState::Gone,
                    ..*backend
                },
            )
        })
    };
    Family::ALL.into_iter().flat_map(of_family).collect()
}

fn name_operations(tables: &MapMirror, image: &MapImage) -> Vec<MapOp> {
    let ours = tables.names();
    let wrong = ours.iter().filter(|(id, name)| image.names.get(id) != Some(name));
    let set = wrong.map(|(id, name)| MapOp::SetName {
        service: *id,
        name: name.clone(),
    });
    let foreign = image.names.keys().filter(|id| !ours.contains_key(id));
    set.chain(foreign.map(|id| MapOp::DeleteName { service: *id }))
        .collect()
}

fn backend_operations(tables: &MapMirror, image: &MapImage) -> Vec<MapOp> {
    let of_family = |family| {
        let rows = tables.backends(family).iter();
        let wrong = rows.filter(move |(id, backend)| image.backends(family).get(id) != Some(backend));
        wrong.map(|(id, backend)| MapOp::SetBackend {
            id,
            backend: *backend,
        })
    };
    Family::ALL.into_iter().flat_map(of_family).collect()
}

/// The image contains only slots that some frontend names. A region whose rows are missing may be
/// rewritten without need.
fn region_operations(tables: &MapMirror, image: &MapImage) -> Vec<MapOp> {
    let wrong = tables.regions().written().filter(|(base, slots)| {
        let found = (*base..).zip(slots.iter());
        !found
            .into_iter()
            .all(|(index, slot)| image.slots.get(&index) == Some(slot))
    });
    wrong
        .map(|(base, slots)| MapOp::SetSlots {
            base,
            slots: slots.to_vec(),
        })
        .collect()
}

fn range_operations(tables: &MapMirror, image: &MapImage) -> Vec<MapOp> {
    let ours: BTreeSet<_> = tables.written_ranges().collect();
    let missing = ours.difference(&image.source_ranges);
    let add = missing.map(|(set, network)| MapOp::AddSourceRange {
        set: *set,
        network: *network,
    });
    let foreign = image.source_ranges.difference(&ours);
    let delete = foreign.map(|(set, network)| MapOp::DeleteSourceRange {
        set: *set,
        network: *network,
    });
    add.chain(delete).collect()
}

fn frontend_operations(tables: &MapMirror, image: &MapImage) -> Vec<MapOp> {
    let ours = tables.frontends();
    let wrong = ours
        .iter()
        .filter(|(key, value)| image.frontends.get(key) != Some(value));
    let set = wrong.map(|(key, value)| MapOp::SetFrontend {
        key: *key,
        value: *value,
    });
    let foreign = image.frontends.keys().filter(|key| !ours.contains_key(key));
    set.chain(foreign.map(|key| MapOp::DeleteFrontend { key: *key }))
        .collect()
}
