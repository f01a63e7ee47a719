//! Remembers what was given, and says what becomes of it.

use std::path::PathBuf;

use super::options::AllocationOptions;
use super::range::ServiceCidrs;
use super::state::State;
use super::store::Store;
use super::{Note, Objects, allocate};

/// So many Services are named one by one; of more, only their number.
const NAMED_MAX: usize = 20;

/// Gives Services what an API server would.
pub(in super::super) struct Allocator {
    cidrs: ServiceCidrs,
    state: State,
    store: Store,
    /// Why what is given is not remembered.
    unsaved: Option<String>,
}

impl Allocator {
    /// Goes on from what was given before.
    pub(in super::super) fn new(options: AllocationOptions) -> Self {
        let (store, state) = Store::open(&options.state_directory);
        Self {
            cidrs: options.cidrs,
            state,
            store,
            unsaved: None,
        }
    }

    /// Fills in what the Services' manifests leave open, and returns what cannot be given to whom.
    /// What is given is remembered before anybody sees it.
    pub(in super::super) fn fill(&mut self, objects: &mut Objects) -> Vec<Note> {
        let allocation = allocate(&self.state, objects, &self.cidrs);
        for (service, text) in few(allocation.new) {
            tracing::info!("{service} gets {text}");
        }
        for (service, text) in few(allocation.moved) {
            tracing::warn!("{service}: {text}");
        }
        objects.extend(allocation.filled);
        self.state = allocation.state;
        self.save();
        few(allocation.faults)
    }

    /// The file that remembers, and why it does not; to be tried again.
    pub(in super::super) fn unsaved(&self) -> Option<(PathBuf, &str)> {
        Some((self.store.path(), self.unsaved.as_deref()?))
    }

    fn save(&mut self) {
        let saved = self.store.save(&self.state);
        self.unsaved = saved.err().map(|error| error.to_string());
    }
}

/// Of many notes the first ones: the last of these says how many there are.
fn few(mut notes: Vec<Note>) -> Vec<Note> {
    let more = notes.len().saturating_sub(NAMED_MAX);
    notes.truncate(NAMED_MAX);
    if let Some((_, text)) = notes.last_mut().filter(|_| more > 0) {
        text.push_str(&format!(
            " (and {more} more such notes about this and other Services)"
        ));
    }
    notes
}
