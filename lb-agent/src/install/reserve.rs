//! Step 1 of a change: everything that it needs is reserved in memory, or the whole change is
//! rejected.

use std::collections::HashSet;

use lb_common::layout::{Region, ServiceId};
use lb_common::map::{self, FamilySpecs as _};
use lb_common::net::{Address4, Address6};

use super::plan::{FamilyDemand, FamilyPlan, RegionPlan};
use super::tables::{Context, index};
use super::{Entry, Installer};
use crate::desired::{DesiredPort, DesiredService};
use crate::maps::{FrontendKey, MapError};
use crate::network::Family;

/// The reservation for one port, by family.
type PortPlan = [FamilyPlan; 2];

impl Installer {
    /// Reserves backends and regions for the ports of a Service.
    pub(super) fn reserve(
        &mut self,
        entry: &Entry,
        desired: &DesiredService,
        context: &mut Context<'_>,
    ) -> Result<(), MapError> {
        self.reserve_frontends(entry, desired, context)?;
        let ports: Vec<(ServiceId, &DesiredPort)> = entry.desired_ports(desired).collect();
        let mut plans: Vec<PortPlan> = ports.iter().map(|(id, port)| self.plan(*id, port)).collect();
        for family in Family::ALL {
            let added: usize = plans.iter().map(|plan| plan[index(family)].added).sum();
            if added > self.tables.backends(family).available() {
                return Err(self.full_backends(family));
            }
        }
        self.allocate_regions(&mut plans)?;
        for ((id, port), plan) in ports.iter().zip(&plans) {
            let Some(state) = self.ports.get_mut(id) else {
                continue;
            };
            for family in Family::ALL {
                let plan = (family, &plan[index(family)]);
                let order = FamilyDemand::of(&self.claims, *id, port, family);
                if !state.families[index(family)].reserve(&mut self.tables, &order, plan, context.now) {
                    return Err(self.full_backends(family));
                }
            }
        }
        Ok(())
    }

    /// Allocates a set for the source ranges of a Service, unless it has one. `None` if the Service
    /// is to be removed.
    pub(super) fn reserve_ranges(
        &mut self,
        entry: &mut Entry,
        desired: Option<&DesiredService>,
    ) -> Result<(), MapError> {
        let wanted = desired
            .filter(|desired| self.names_ranges(entry, desired))
            .map(|desired| &desired.source_ranges.networks);
        let sets = self.tables.ranges_mut();
        if sets.networks(entry.ranges) == wanted {
            return Ok(());
        }
        let new = match wanted {
            Some(networks) => sets.allocate(networks.clone())?,
            None => 0,
        };
        sets.release(std::mem::replace(&mut entry.ranges, new));
        Ok(())
    }

    /// Whether any row of a Service names source ranges.
    fn names_ranges(&self, entry: &Entry, desired: &DesiredService) -> bool {
        entry.desired_ports(desired).any(|(id, port)| {
            let mut granted = port
                .frontends
                .iter()
                .filter(|frontend| self.claims.get(&frontend.key) == Some(&id));
            granted.any(|frontend| {
                desired
                    .source_ranges
                    .filter(frontend.kind, Family::of(frontend.key.address()))
            })
        })
    }

    fn plan(&self, id: ServiceId, port: &DesiredPort) -> PortPlan {
        let empty = super::InstalledPort::default();
        let state = self.ports.get(&id).unwrap_or(&empty);
        Family::ALL.map(|family| {
            let order = FamilyDemand::of(&self.claims, id, port, family);
            state.family(family).plan(&self.tables, family, &order)
        })
    }

    fn full_backends(&self, family: Family) -> MapError {
        MapError::Full {
            map: match family {
                Family::V4 => Address4::BACKENDS.name,
                Family::V6 => Address6::BACKENDS.name,
            },
            capacity: self.tables.capacity().backends,
            flag: "--max-backends",
        }
    }

    /// Allocates all new regions, or none of them.
    fn allocate_regions(&mut self, plans: &mut [PortPlan]) -> Result<(), MapError> {
        let mut allocated: Vec<Region> = Vec::new();
        let wants = plans
            .iter_mut()
            .flatten()
            .flat_map(|plan| [&mut plan.cluster, &mut plan.local, &mut plan.maglev]);
        for want in wants {
            let RegionPlan::New(length) = *want else {
                continue;
            };
            let Some(region) = self.tables.regions_mut().allocate(length) else {
                for region in allocated {
                    self.tables.regions_mut().free(region);
                }
                let capacity = self.tables.capacity().slots;
                return Err(MapError::Full {
                    map: map::SLOTS.name,
                    capacity,
                    flag: "--max-slots",
                });
            };
            allocated.push(region);
            *want = RegionPlan::Allocated(region);
        }
        Ok(())
    }

    /// Checks that the frontend rows fit. If they fit only without the Service's old rows, deletes
    /// the old rows first.
    fn reserve_frontends(
        &mut self,
        entry: &Entry,
        desired: &DesiredService,
        context: &mut Context<'_>,
    ) -> Result<(), MapError> {
        let fits = |installer: &Self| {
            Family::ALL
                .into_iter()
                .find(|family| installer.is_over(entry, desired, *family))
        };
        if fits(self).is_some() {
            for (_, id) in &entry.ports {
                self.delete_frontends(*id, context)?;
            }
        }
        match fits(self) {
            None => Ok(()),
            Some(family) => Err(MapError::Full {
                map: match family {
                    Family::V4 => Address4::FRONTENDS.name,
                    Family::V6 => Address6::FRONTENDS.name,
                },
                capacity: self.tables.capacity().frontends,
                flag: "--max-frontends",
            }),
        }
    }

    fn is_over(&self, entry: &Entry, desired: &DesiredService, family: Family) -> bool {
        let granted = entry.desired_ports(desired).flat_map(|(id, port)| {
            let keys = port.frontends.iter().map(|frontend| frontend.key);
            keys.filter(move |key| self.claims.get(key) == Some(&id))
        });
        let wildcards = desired.vips.iter().map(|vip| FrontendKey::Wildcard(vip.address));
        let added: HashSet<FrontendKey> = granted
            .chain(wildcards)
            .filter(|key| Family::of(key.address()) == family && self.tables.frontend(key).is_none())
            .collect();
        !added.is_empty()
            && self.tables.n_frontends(family) + added.len() > self.tables.capacity().frontends as usize
    }
}
