//! Four lanes: one verb at a time in each, beside each other. Invariant: `election` never waits for `data`.

use backlot_standard::verb::Lane;
use tokio::sync::{Mutex, MutexGuard, Notify};

/// The lanes.
#[derive(Debug, Default)]
pub struct Lanes {
    observe: One,
    lifecycle: One,
    data: One,
    election: One,
}

#[derive(Debug, Default)]
struct One {
    occupied: Mutex<()>,
    cancel: Notify,
}

impl Lanes {
    /// Waits until the lane is free and occupies it. Entering `election` ends what runs in `data`.
    pub async fn enter(&self, lane: Lane) -> MutexGuard<'_, ()> {
        if lane == Lane::Election {
            self.cancel(Lane::Data);
        }
        self.one(lane).occupied.lock().await
    }

    /// Resolves when the call in this lane is to end.
    pub async fn cancelled(&self, lane: Lane) {
        self.one(lane).cancel.notified().await;
    }

    /// Ends the call in this lane, if there is one.
    pub fn cancel(&self, lane: Lane) {
        self.one(lane).cancel.notify_waiters();
    }

    /// Whether a call is in any lane but `observe`.
    pub fn are_busy(&self) -> bool {
        [&self.lifecycle, &self.data, &self.election].iter().any(|one| one.occupied.try_lock().is_err())
    }

    fn one(&self, lane: Lane) -> &One {
        match lane {
            Lane::Observe => &self.observe,
            Lane::Lifecycle => &self.lifecycle,
            Lane::Data => &self.data,
            Lane::Election => &self.election,
        }
    }
}
