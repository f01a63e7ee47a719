//! The backend rows of one family, and their ids.

use std::collections::BTreeMap;

use lb_common::layout::BackendId;

use super::ids::Ids;
use crate::maps::{Backend, BackendState, MapError, Maps};

/// The rows of one family of backends.
#[derive(Debug)]
pub(super) struct BackendTable {
    /// The contents of each row, by id. The lowest ids are in use. Rows of free ids are gone or
    /// were never written.
    rows: Vec<Option<Backend>>,
    ids: Ids,
}

impl BackendTable {
    /// Restores the rows from the maps.
    pub(super) fn restore(found: &BTreeMap<BackendId, Backend>, capacity: u32) -> Self {
        let live = found
            .iter()
            .filter(|(_, backend)| backend.state != BackendState::Gone)
            .map(|(id, _)| *id);
        let mut table = Self {
            ids: Ids::new(capacity, live),
            rows: Vec::new(),
        };
        for (id, row) in found {
            table.note(*id, *row);
        }
        table
    }

    /// The row with this id, if it was ever written.
    pub(super) fn row(&self, id: BackendId) -> Option<&Backend> {
        self.rows.get(id as usize)?.as_ref()
    }

    /// The row with this id, if it contains an endpoint.
    pub(super) fn endpoint(&self, id: BackendId) -> Option<&Backend> {
        self.row(id).filter(|backend| backend.state != BackendState::Gone)
    }

    /// All rows that were ever written.
    pub(super) fn iter(&self) -> impl Iterator<Item = (BackendId, &Backend)> {
        (0..)
            .zip(&self.rows)
            .filter_map(|(id, row)| Some((id, row.as_ref()?)))
    }

    /// The generation of the row's endpoint, or of its next one if it has none.
    pub(super) fn generation(&self, id: BackendId) -> u32 {
        match self.row(id) {
            None => 1,
            Some(backend) if backend.state == BackendState::Gone => backend.generation.wrapping_add(1).max(1),
            Some(backend) => backend.generation,
        }
    }

    /// The number of free ids.
    pub(super) fn available(&self) -> usize {
        self.ids.available()
    }

    /// Allocates an id.
    pub(super) fn allocate(&mut self) -> Option<BackendId> {
        self.ids.allocate()
    }

    /// Frees an id whose row was not written, or has been gone for long enough.
    pub(super) fn free(&mut self, id: BackendId) {
        self.ids.release(id);
    }

    /// Whether `row` differs from what is written.
    pub(super) fn needs_write(&self, id: BackendId, row: &Backend) -> bool {
        self.row(id) != Some(row)
    }

    /// Writes rows.
    pub(super) fn write(
        &mut self,
        maps: &mut dyn Maps,
        rows: Vec<(BackendId, Backend)>,
    ) -> Result<(), MapError> {
        let result = maps.set_backends(&rows);
        let written = result
            .as_ref()
            .map_or_else(|(written, _)| *written, |()| rows.len());
        for (id, row) in rows.into_iter().take(written) {
            self.note(id, row);
        }
        result.map_err(|(_, error)| error)
    }

    /// Records a row that is in the maps. Rows that another program wrote are recorded too, so that
    /// their next endpoint gets a new generation.
    pub(super) fn note(&mut self, id: BackendId, row: Backend) {
        let position = id as usize;
        if position >= self.rows.len() {
            self.rows.resize(position + 1, None);
        }
        self.rows[position] = Some(row);
    }
}
