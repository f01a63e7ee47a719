//! The counters of the kernel programs.

use std::path::Path;

use aya::maps::{MapData, MapError as KernelError, PerCpuArray, PerCpuValues};
use lb_common::layout::{ServiceId, ServiceStats};
use lb_common::map;
use lb_common::reason::Reason;

use super::pinned::{kernel, open};
use crate::maps::MapError;

/// The counters of the kernel programs.
pub struct Counters {
    services: PerCpuArray<MapData, ServiceStats>,
    reasons: PerCpuArray<MapData, u64>,
}

impl Counters {
    /// Opens the counters pinned in `directory`.
    pub fn open(directory: &Path) -> Result<Self, MapError> {
        Ok(Self {
            services: open(directory, &map::SERVICE_STATS)?,
            reasons: open(directory, &map::REASONS)?,
        })
    }

    /// The counters of a service port, summed over all CPUs.
    pub fn service(&self, service: ServiceId) -> Result<ServiceStats, MapError> {
        let values = self.services.get(&service, 0).map_err(|error| {
            kernel(
                map::SERVICE_STATS.name,
                format!("read the counters of service {service}"),
                error,
            )
        })?;
        Ok(values
            .iter()
            .fold(ServiceStats::default(), |sum, value| ServiceStats {
                connections: sum.connections + value.connections,
                rejected: sum.rejected + value.rejected,
            }))
    }

    /// Sets the counters of a service port to 0.
    pub(super) fn reset(&mut self, service: ServiceId) -> Result<(), MapError> {
        let zeros = aya::util::nr_cpus()
            .map_err(|(_, error)| error)
            .and_then(|cpus| PerCpuValues::try_from(vec![ServiceStats::default(); cpus]));
        zeros
            .map_err(KernelError::from)
            .and_then(|zeros| self.services.set(service, zeros, 0))
            .map_err(|error| {
                kernel(
                    map::SERVICE_STATS.name,
                    format!("reset the counters of service {service}"),
                    error,
                )
            })
    }

    /// The number of packets that were rejected, answered or dropped for this reason, summed over
    /// all CPUs.
    pub fn reason(&self, reason: Reason) -> Result<u64, MapError> {
        let values = self.reasons.get(&reason.index(), 0).map_err(|error| {
            kernel(
                map::REASONS.name,
                format!("read the counter of {}", reason.name()),
                error,
            )
        })?;
        Ok(values.iter().sum())
    }
}
