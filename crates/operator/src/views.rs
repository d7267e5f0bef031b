//! Numbers of cluster views, and who holds which: a change of settings is done when every running engine has taken it up.
//!
//! Numbers are kept in memory only. They rise across restarts and leaders, because the epoch in their upper half does, and one
//! process never uses a number twice.

use std::sync::atomic::{AtomicU64, Ordering};

use backlot_core::plan::{Activity, ActivityKind};
use backlot_core::snapshot::{Observed, Snapshot};
use backlot_standard::status::EnginePhase;
use backlot_standard::view::{ClusterView, SignedView};

use crate::pki::{self, PkiError};

/// What members of one Database were last told.
#[derive(Default)]
pub(crate) struct Told {
    view: Option<ClusterView>,
    number: u64,
    settings_since: u64,
}

impl Told {
    /// The view's number: the last one while its content is the same, else a new one from `numbers`.
    pub(crate) fn number(&mut self, view: &ClusterView, snapshot: &Snapshot, numbers: &AtomicU64) -> u64 {
        if self.view.as_ref() == Some(view) {
            return self.number;
        }
        self.number = (snapshot.operator.epoch << 32) | (numbers.fetch_add(1, Ordering::Relaxed) + 1);
        let status = snapshot.database.status.as_ref();
        let is_judged = status.and_then(|status| status.observed_generation) == snapshot.database.metadata.generation;
        let is_changed = match &self.view {
            Some(before) => before.components != view.components,
            // After a restart only an edit that nobody has judged yet can be news to the members.
            None => !is_judged,
        };
        if is_changed {
            self.settings_since = self.number;
        }
        self.view = Some(view.clone());
        self.number
    }

    /// What keeps the present settings from being in force everywhere: members that still take them up, or refuse to.
    pub(crate) fn pending_settings(&self, snapshot: &Snapshot) -> Option<Activity> {
        let running = snapshot.agents.iter().filter_map(|(member, status)| Some((member, status.known()?)));
        let running: Vec<_> = running.filter(|(_, status)| status.engine.phase == EnginePhase::Running).collect();
        if let Some((member, error)) =
            running.iter().find_map(|(member, status)| Some((member, status.config.error.as_ref()?)))
        {
            let message = format!("{member} does not take up its settings: {error}");
            return Some(Activity { kind: ActivityKind::Stuck, reason: "SettingsNotApplied", message });
        }
        let late: Vec<_> = running
            .iter()
            .filter(|(_, status)| status.config.applied_generation.unwrap_or(0) < self.settings_since)
            .map(|(member, _)| member.as_str())
            .collect();
        let message = format!("{} of {} members take up the settings", late.len(), running.len());
        (!late.is_empty()).then_some(Activity { kind: ActivityKind::Working, reason: "ApplyingSettings", message })
    }
}

/// Members that are heard of and do not hold the view of this number.
pub(crate) fn lacking(snapshot: &Snapshot, number: u64) -> Vec<&String> {
    let lacks = |status: &Observed<_>| {
        status
            .known()
            .is_some_and(|status: &backlot_standard::status::MemberStatus| status.view_generation != Some(number))
    };
    snapshot.agents.iter().filter(|(_, status)| lacks(status)).map(|(member, _)| member).collect()
}

/// The view with its number, signed by the cluster's key; `None` while the Secret is not there.
pub(crate) fn signed(snapshot: &Snapshot, view: &ClusterView, number: u64) -> Result<Option<SignedView>, PkiError> {
    let data = snapshot.objects.secret.as_ref().and_then(|secret| secret.data.as_ref());
    let key = data.and_then(|data| data.get(pki::CA_KEY)).and_then(|key| std::str::from_utf8(&key.0).ok());
    let Some(key) = key else { return Ok(None) };
    let view = ClusterView { generation: number, ..view.clone() };
    pki::sign(serde_json::to_string(&view).unwrap_or_default(), key).map(Some)
}
