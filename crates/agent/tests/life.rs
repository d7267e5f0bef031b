//! A member's life: founding, start from the last view, graceful stop, settings, leadership.

mod support;

use backlot_standard::operation::Act;
use backlot_standard::status::EnginePhase;
use backlot_standard::verb::Verb;
use support::{TestMember, operation, view};

#[test]
fn a_group_is_founded_once_on_order_only() {
    let mut member = TestMember::usual();
    member.start();
    member.wait_blocked("WaitingForView");
    member.show(&view(1, false));
    member.wait_blocked("WaitingForFounding");
    assert!(member.calls("found").is_empty());
    let report = member.operate(&operation("db/found-1", Act::Verb(Verb::Found)));
    assert_eq!(report["state"], "done", "{report}");
    assert_eq!(report["result"]["changed"], true);
    let status = member.status();
    assert_eq!(status.engine.phase, EnginePhase::Running);
    assert_eq!(status.blocked, None);
    assert!(member.operator.get("/readyz").unwrap().status == 200);
    member.show(&view(2, true));
    let again = member.operate(&operation("db/found-1", Act::Verb(Verb::Found)));
    assert_eq!(again, report);
    assert_eq!(member.calls("found").len(), 1);
    assert!(member.calls("render").iter().all(|call| call[4] == "true"));
}
