//! What a running engine is told when the view changes: its leader (`elections: agent`) and its settings.
//!
//! Invariant: level-triggered; what was told is compared with what the view says, and told again until it succeeds.

use std::rc::Rc;

use backlot_standard::manifest::Elections;
use backlot_standard::request::Reason;
use backlot_standard::result::{Exit, ReconfigureOutput};
use backlot_standard::status::Blocked;
use backlot_standard::verb::Verb;
use backlot_standard::view::ClusterView;

use super::Pilot;
use super::config::{self, Values};
use super::image::Image;
use super::leadership::{Act, Facts, Leader, decide};
use super::request::Call;
use super::start::verb_failed;
use super::state::{back_off, fresh};
use crate::log::{self, Level};

/// Tells the engine who leads.
pub async fn lead(pilot: Rc<Pilot>) {
    let Ok(image) = pilot.image.clone() else { return };
    if image.manifest.elections != Elections::Agent {
        return;
    }
    let mut changed = pilot.changed.subscribe();
    let mut failures = 0;
    loop {
        changed.borrow_and_update();
        let (act, leader) = next_act(&pilot, &image);
        if act == Act::Nothing {
            let _ = changed.changed().await;
            continue;
        }
        match carry_out(&pilot, act, leader).await {
            Ok(()) => {
                if std::mem::take(&mut failures) > 0 {
                    pilot.update(|state| state.blocked = None);
                }
            }
            Err(error) => {
                log::event(Level::Warn, "the engine did not take its role", &[("error", &error)]);
                let blocked = Blocked { reason: "VerbFailed".to_owned(), message: error };
                pilot.update(|state| state.blocked = Some(blocked));
                failures += 1;
                tokio::time::sleep(back_off(failures - 1)).await;
            }
        }
    }
}

fn next_act(pilot: &Pilot, image: &Image) -> (Act, String) {
    let state = pilot.state.borrow();
    let (Some(_), Some(group)) = state.own(&pilot.member.id) else { return (Act::Nothing, String::new()) };
    let founding = !group.founded && group.founder.as_ref() == Some(&pilot.member.id);
    let named = group.leader.as_ref().or(founding.then_some(&pilot.member.id));
    let member = named.and_then(|id| state.view.as_ref().and_then(|held| held.view.member(id)));
    let leader = member.map(|member| Leader { id: &member.id, name: &member.name, address: &member.address });
    let key = leader.as_ref().map(Leader::key).unwrap_or_default();
    let facts = Facts {
        member: &pilot.member.id,
        leader,
        founded: group.founded || (founding && (state.found_done || !image.has(Verb::Found))),
        running: state.is_running() && !state.quiescent && !state.terminating,
        role: fresh(state.role.as_ref(), &image.manifest),
        promoted: state.session.promoted,
        followed: state.session.followed.as_deref(),
        can_follow: image.has(Verb::Follow),
        can_demote: image.has(Verb::Demote),
    };
    (decide(&facts), key)
}

async fn carry_out(pilot: &Rc<Pilot>, act: Act, leader: String) -> Result<(), String> {
    let verb = match act {
        Act::Nothing => return Ok(()),
        Act::RestartFenced => {
            pilot.update(|state| state.engine.unwell = Some("it takes writes while another member leads"));
            return wait_for_stop(pilot).await;
        }
        Act::Promote => Verb::Promote,
        Act::Follow => Verb::Follow,
        Act::Demote => Verb::Demote,
    };
    let epoch = {
        let state = pilot.state.borrow();
        state.own(&pilot.member.id).1.map_or(0, |group| group.epoch)
    };
    let mut call = Call::own(verb, &format!("{epoch}-{}", pilot.session_name()), 1, Reason::Restart);
    call.founding = pilot.state.borrow().session.founding;
    let starts = pilot.state.borrow().session.starts;
    if act == Act::Promote {
        // Before the call: also a promotion whose outcome is unknown must be undone when another leads.
        pilot.update_session(|session| session.promoted = true);
    }
    let outcome = pilot.call(&call).await;
    // What `role` said before is no longer true; the next poll tells.
    pilot.update(|state| state.role = None);
    if outcome.exit != Exit::Done {
        return Err(format!("{}: {}", verb.name(), outcome.message()));
    }
    if pilot.state.borrow().session.starts == starts {
        match act {
            Act::Follow => pilot.update_session(|session| session.followed = Some(leader)),
            Act::Demote => pilot.update_session(|session| session.promoted = false),
            Act::Nothing | Act::RestartFenced | Act::Promote => {}
        }
    }
    pilot.poll_now.notify_one();
    Ok(())
}

async fn wait_for_stop(pilot: &Pilot) -> Result<(), String> {
    let mut changed = pilot.changed.subscribe();
    while pilot.state.borrow().engine.unwell.is_some() {
        changed.changed().await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Tells the engine its settings and its group's members.
pub async fn configure(pilot: Rc<Pilot>) {
    let Ok(image) = pilot.image.clone() else { return };
    let mut changed = pilot.changed.subscribe();
    let mut failures = 0;
    loop {
        changed.borrow_and_update();
        let Some(change) = next_change(&pilot, &image) else {
            let _ = changed.changed().await;
            continue;
        };
        match apply(&pilot, &image, &change).await {
            Ok(()) => failures = 0,
            Err(error) => {
                pilot.update(|state| state.config.error = Some(error));
                failures += 1;
                // A corrected view is worth a try at once.
                let _ = tokio::time::timeout(back_off(failures - 1), newer_view(&pilot, change.generation)).await;
            }
        }
    }
}

struct Change {
    generation: u64,
    wanted: Values,
    members: String,
    call: bool,
}

/// What the running engine does not know yet.
fn next_change(pilot: &Pilot, image: &Image) -> Option<Change> {
    let state = pilot.state.borrow();
    if !state.is_running() || state.quiescent || state.terminating {
        return None;
    }
    let held = state.view.as_ref()?;
    let component = &state.own(&pilot.member.id).0?.component;
    let wanted = held.view.components.get(component).map(|component| component.config.clone()).unwrap_or_default();
    let members = members_key(&held.view);
    let news = members != state.session.members
        || !config::untold(&state.session.told, &wanted, &image.manifest.config).is_empty();
    let call = news && image.has(Verb::Reconfigure);
    let generation = held.view.generation;
    let settled = generation == state.session.applied_generation && !call;
    (!settled).then_some(Change { generation, wanted, members, call })
}

async fn apply(pilot: &Rc<Pilot>, image: &Image, change: &Change) -> Result<(), String> {
    let starts = pilot.state.borrow().session.starts;
    let mut waiting = None;
    if change.call {
        let purpose = format!("{}-{}", change.generation, pilot.session_name());
        let outcome = pilot.call(&Call::own(Verb::Reconfigure, &purpose, 1, Reason::Config)).await;
        let output: ReconfigureOutput =
            outcome.output().map_err(|error| verb_failed(Verb::Reconfigure, &error).message)?;
        waiting = Some(output.pending_restart);
    }
    if pilot.state.borrow().session.starts != starts {
        return Ok(());
    }
    pilot.update_session(|session| {
        let settled = config::settle(&session.applied, &change.wanted, &image.manifest.config, waiting.as_deref());
        (session.applied, session.pending_restart) = settled;
        session.applied_generation = change.generation;
        session.told.clone_from(&change.wanted);
        session.members.clone_from(&change.members);
    });
    pilot.update(|state| state.config.error = None);
    Ok(())
}

async fn newer_view(pilot: &Pilot, generation: u64) {
    let mut changed = pilot.changed.subscribe();
    while pilot.state.borrow().view.as_ref().is_none_or(|held| held.view.generation <= generation) {
        if changed.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// What an engine is told of its members, those of other components too.
pub fn members_key(view: &ClusterView) -> String {
    let mut key = String::new();
    for other in &view.members {
        let line = serde_json::to_string(&(
            (&other.id, other.numeric_id, &other.name, &other.address),
            (other.state, other.vote, &other.engine_id),
        ));
        key.push_str(&line.unwrap_or_default());
    }
    key
}
