//! What follows from an answer.

use super::*;
use backlot_standard::request::Reason;
use backlot_standard::result::{Retry, RetryNeed};

fn entry(attempts: u32, unknowns: u32, since: i64) -> Entry {
    Entry {
        number: 0,
        request: OperationRequest {
            id: "a".to_owned(),
            operator_epoch: 1,
            view_generation: 1,
            act: Act::Verb(Verb::Join),
            reason: Reason::Create,
            subject: None,
            via: None,
            params: serde_json::Map::new(),
        },
        report: OperationReport {
            id: "a".to_owned(),
            state: OperationState::Running,
            attempts,
            exit: None,
            result: VerbResult::default(),
        },
        handle: None,
        since,
        unknowns,
        boot_id: String::new(),
        starts: 0,
    }
}

fn outcome(exit: Exit, after: Option<u32>) -> Outcome {
    let retry = after.map(|after_seconds| Retry { after_seconds, need: RetryNeed::Settle });
    Outcome { exit, result: VerbResult { retry, ..VerbResult::default() }, scratch: None }
}

#[test]
fn answers_end_an_operation_or_ask_for_another_call() {
    let again = |seconds| Verdict::Again(Duration::from_secs(seconds));
    let now = 1_000_000;
    let day = LONG_SECONDS;
    let cases = [
        ("done", outcome(Exit::Done, None), entry(1, 0, now), false, Verdict::Done),
        ("pending", outcome(Exit::Pending, None), entry(1, 0, now), true, again(2)),
        ("pending with a pause", outcome(Exit::Pending, Some(30)), entry(1, 0, now), true, again(30)),
        ("a long verb may take many calls", outcome(Exit::Pending, None), entry(5000, 0, now - 100), true, again(2)),
        ("but not more than a day", outcome(Exit::Pending, None), entry(9, 0, now - day - 1), true, Verdict::Failed),
        ("a short one has ten calls", outcome(Exit::Later, None), entry(9, 0, now), false, again(2)),
        ("and no more", outcome(Exit::Later, None), entry(10, 0, now), false, Verdict::Failed),
        ("busy", outcome(Exit::Busy, None), entry(1, 0, now), false, again(2)),
        ("wrong engine state", outcome(Exit::EngineState, None), entry(1, 0, now), false, again(2)),
        ("unknown once", outcome(Exit::Unknown, None), entry(1, 1, now), false, again(1)),
        ("unknown four times", outcome(Exit::Unknown, None), entry(4, 4, now), false, again(8)),
        ("unknown five times", outcome(Exit::Unknown, None), entry(5, 5, now), true, Verdict::Failed),
        ("invalid", outcome(Exit::Invalid, None), entry(1, 0, now), true, Verdict::Failed),
        ("unsupported", outcome(Exit::Unsupported, None), entry(1, 0, now), true, Verdict::Failed),
        ("unsafe", outcome(Exit::Unsafe, None), entry(1, 0, now), true, Verdict::Failed),
        ("conflict", outcome(Exit::Conflict, None), entry(1, 0, now), true, Verdict::Failed),
        ("failed", outcome(Exit::Failed, None), entry(1, 0, now), true, Verdict::Failed),
    ];
    for (name, outcome, entry, long, verdict) in cases {
        assert_eq!(judge(&entry, &outcome, long, now), verdict, "{name}");
    }
}
