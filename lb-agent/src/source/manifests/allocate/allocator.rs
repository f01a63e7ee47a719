//! Allocates values with the saved state, and saves the new state.

use std::path::PathBuf;

use super::options::AllocationOptions;
use super::range::ServiceCidrs;
use super::state::AllocationState;
use super::store::Store;
use super::{Note, Objects, allocate};

/// The maximum number of messages. If there are more, the last one contains the number of the
/// others.
const NAMED_MAX: usize = 20;

/// Allocates what an API server allocates for Services.
pub(in super::super) struct Allocator {
    cidrs: ServiceCidrs,
    state: AllocationState,
    store: Store,
    /// Why the state is not saved.
    unsaved: Option<String>,
}

impl Allocator {
    /// Starts with the saved state.
    pub(in super::super) fn new(options: AllocationOptions) -> Self {
        let (store, state) = Store::open(&options.state_directory);
        Self {
            cidrs: options.cidrs,
            state,
            store,
            unsaved: None,
        }
    }

    /// Fills in what the Services' manifests leave open. Returns messages about values that
    /// cannot be allocated. The state is saved before anything else sees the values.
    pub(in super::super) fn fill(&mut self, objects: &mut Objects) -> Vec<Note> {
        let allocation = allocate(&self.state, objects, &self.cidrs);
        for (service, text) in first_notes(allocation.new) {
            tracing::info!("{service} gets {text}");
        }
        for (service, text) in first_notes(allocation.moved) {
            tracing::warn!("{service}: {text}");
        }
        objects.extend(allocation.filled);
        self.state = allocation.state;
        self.save();
        first_notes(allocation.faults)
    }

    /// The state's file, and why it could not be saved. The caller tries again.
    pub(in super::super) fn unsaved(&self) -> Option<(PathBuf, &str)> {
        Some((self.store.path(), self.unsaved.as_deref()?))
    }

    fn save(&mut self) {
        let saved = self.store.save(&self.state);
        self.unsaved = saved.err().map(|error| error.to_string());
    }
}

/// Returns the first notes. The last of them contains the number of the others.
fn first_notes(mut notes: Vec<Note>) -> Vec<Note> {
    let more = notes.len().saturating_sub(NAMED_MAX);
    notes.truncate(NAMED_MAX);
    if let Some((_, text)) = notes.last_mut().filter(|_| more > 0) {
        text.push_str(&format!(
            " (and {more} more messages about this and other Services)"
        ));
    }
    notes
}
