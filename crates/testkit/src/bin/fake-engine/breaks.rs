//! Rules of the standard that an image of this program breaks on purpose: the variable `FAKE_BREAKS` names one. The conformance
//! kit is tested with it: every check must catch its violation.
//!
//! Invariant: without the variable nothing here has an effect.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use backlot_standard::request::MemberState;
use backlot_standard::verb::Verb;
use serde_json::{Value, json};

use super::verbs::{Call, Outcome, refused};

/// Verbs that take the lock of the breaks about concurrent and killed calls.
const LOCKING: &[Verb] = &[Verb::Join, Verb::Leave, Verb::Reconfigure, Verb::Rebalance];
/// How long a lock is held.
const HELD: Duration = Duration::from_millis(700);
/// Processor time that a greedy poll takes.
const GREED: Duration = Duration::from_millis(60);

/// Whether this image breaks `rule`.
pub fn breaks(rule: &str) -> bool {
    std::env::var("FAKE_BREAKS").is_ok_and(|broken| broken == rule)
}

/// Runs a verb as the image does that breaks a rule.
pub fn run(call: &Call, verb: Verb) -> Outcome {
    let changes = LOCKING.contains(&verb);
    if breaks("unknown-fields") && fs::read_to_string(call.request_file()).is_ok_and(|text| text.contains("surprise")) {
        return refused(20, "UnknownField", "the request has a field that is not known");
    }
    if verb == Verb::Join && breaks("knows-one-component") && call.own().is_some_and(|own| own.component != "data") {
        return refused(20, "UnknownComponent", "this is no member of data");
    }
    let lock = call.data.join("lock");
    if changes && (breaks("one-at-a-time") || breaks("stale-lock")) {
        if fs::OpenOptions::new().write(true).create_new(true).open(&lock).is_err() {
            let code = if breaks("stale-lock") { 12 } else { 30 };
            return refused(code, "Locked", "another call is at work");
        }
        std::thread::sleep(HELD);
    }
    let mut outcome = call.run(verb);
    if changes {
        // Absent unless one of these rules is broken.
        drop(fs::remove_file(&lock));
    }
    if changes && breaks("says-changed") {
        outcome.1.changed = true;
    }
    match verb {
        Verb::Render => break_render(call, outcome.1.output.as_mut()),
        Verb::Prepare if breaks("founds-again") && has_joined(call) => {
            outcome.1.output = Some(json!({"state": "existing", "message": "never looked"}));
        }
        Verb::Role => break_role(call, outcome.1.output.as_mut()),
        Verb::Health if breaks("tells-secrets") => println!("the password is {}", Call::secret()),
        Verb::CanDisrupt if breaks("allows-nothing") => outcome.1.output = Some(json!({"allowed": []})),
        Verb::Reconfigure if breaks("live-by-restart") => {
            if let Some(output) = &mut outcome.1.output {
                output["pendingRestart"] = json!(["greeting"]);
            }
        }
        _ => {}
    }
    outcome
}

fn has_joined(call: &Call) -> bool {
    call.own().is_some_and(|own| own.state == MemberState::Joined)
}

fn break_render(call: &Call, output: Option<&mut Value>) {
    let Some(output) = output else { return };
    if breaks("render-changes") {
        output["env"] = json!({"RENDERED": format!("{:?}", std::time::SystemTime::now())});
    }
    if breaks("ignores-sigterm") {
        let argv = output["argv"].take();
        let words: Vec<&str> = argv.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        output["argv"] = json!(["/bin/sh", "-c", format!("trap '' TERM; exec {}", words.join(" "))]);
    }
    if breaks("founds-again") && has_joined(call) {
        output["env"] = json!({"FAKE_FOUNDS": call.request.cluster.uid});
    }
}

fn break_role(call: &Call, output: Option<&mut Value>) {
    let Some(output) = output else { return };
    if breaks("no-leader") {
        output["role"] = json!("follower");
    }
    if breaks("greedy-polls") {
        let started = Instant::now();
        while started.elapsed() < GREED {}
    }
    if breaks("rejoins") && has_joined(call) {
        drop(call.run(Verb::Join));
    }
}

/// Whether a call that is done ends with a code that the standard does not know: the first one, so that the next one heals it.
pub fn ends_oddly(root: &Path) -> bool {
    let mark = root.join("data/ended-oddly");
    breaks("odd-exit-code") && !mark.exists() && fs::write(mark, "").is_ok()
}

/// Whether the engine may not start: it has started before.
pub fn is_spent(data: &Path) -> bool {
    let mark = data.join("started");
    breaks("starts-once") && (mark.exists() || fs::write(mark, "").is_err())
}
