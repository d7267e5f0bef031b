//! The report about this member. Invariant: it is made from the state in one place, and its revision rises exactly when
//! something but the data's position changed.

use std::collections::BTreeMap;

use backlot_standard::operation::OperationReport;
use backlot_standard::status::{ConfigStatus, EngineStatus, MemberStatus};

use super::Pilot;
use super::identity::Volume;
use super::state::fresh;

/// Operations shown.
const OPERATIONS: usize = 8;
/// Largest output of an operation that is shown here; the whole is read by the operation's id.
const OUTPUT_BYTES: usize = 16 * 1024;
/// Revisions of one pilot; the next pilot of the container goes on above them.
const REVISIONS_PER_RUN: u64 = 1 << 32;

/// The last report and what it was compared by.
#[derive(Clone, Debug)]
pub struct Published {
    /// The report.
    pub status: MemberStatus,
    /// The report without what changes all the time.
    comparable: MemberStatus,
}

impl Pilot {
    /// The present report.
    pub fn publish(&self) -> MemberStatus {
        let mut status = self.status();
        let mut comparable = status.clone();
        // Under load the position moves with every poll; by itself it is no news.
        if let Some(role) = &mut comparable.role {
            role.position = None;
        }
        let mut published = self.published.borrow_mut();
        status.revision = match published.as_ref() {
            Some(last) if last.comparable == comparable => last.status.revision,
            Some(last) => last.status.revision + 1,
            None => self.hello.run * REVISIONS_PER_RUN,
        };
        *published = Some(Published { status: status.clone(), comparable });
        status
    }

    fn status(&self) -> MemberStatus {
        let state = self.state.borrow();
        let manifest = self.image.as_ref().ok().map(|image| &image.manifest);
        let running = state.engine.running.is_some();
        MemberStatus {
            standard: backlot_standard::STANDARD.to_owned(),
            revision: 0,
            boot_id: self.hello.boot_id.clone(),
            agent: self.build.clone(),
            member: self.member.id.clone(),
            cluster_uid: self.member.cluster_uid.clone(),
            incarnation: match &state.volume {
                Volume::Ours { incarnation } => Some(incarnation.clone()),
                Volume::None | Volume::Foreign { .. } | Volume::Unusable { .. } => None,
            },
            address: self.member.address.clone(),
            view_generation: state.view.as_ref().map(|held| held.view.generation),
            engine: EngineStatus {
                phase: state.phase(),
                starts: state.engine.starts,
                started_at: state.engine.started_at,
                last_exit: state.engine.last_exit.clone(),
            },
            data: state.reported_data,
            role: manifest.and_then(|manifest| fresh(state.role.as_ref(), manifest).cloned()),
            health: manifest.and_then(|manifest| fresh(state.health.as_ref(), manifest).cloned()),
            config: ConfigStatus {
                applied_generation: running.then_some(state.session.applied_generation),
                pending_restart: state.session.pending_restart.clone(),
                applied: if running { state.session.applied.clone() } else { BTreeMap::default() },
                error: state.config.error.clone(),
            },
            blocked: state.blocked.clone(),
            operations: self.recent_operations(),
        }
    }

    fn recent_operations(&self) -> Vec<OperationReport> {
        let journal = self.journal.borrow();
        let entries = journal.entries();
        let running = entries.iter().filter(|entry| entry.is_running()).count();
        let mut ended = OPERATIONS.saturating_sub(running);
        let mut shown = vec![];
        for entry in entries.iter().rev() {
            if entry.is_running() {
                shown.push(brief(&entry.report));
            } else if ended > 0 {
                ended -= 1;
                shown.push(brief(&entry.report));
            }
        }
        shown.reverse();
        shown
    }
}

/// A report without an output that is too large for a line that is sent at every change.
fn brief(report: &OperationReport) -> OperationReport {
    let mut report = report.clone();
    let size = report.result.output.as_ref().map_or(0, |output| output.to_string().len());
    if size > OUTPUT_BYTES {
        report.result.output = None;
        report.result.warnings.push(format!("the output has {size} bytes; read it by the operation's id"));
    }
    report
}
