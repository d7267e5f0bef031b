//! Level 1: one member's life.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use backlot_standard::config::Apply;
use backlot_standard::manifest::{PortPurpose, Protocol};
use backlot_standard::result::Exit;
use backlot_standard::verb::Verb;
use serde_json::Value;

use super::{repeatable, smallest};
use crate::kit::{Answer, Claims, Kit};
use crate::processes;

/// Time in which a settled member must open its ports and show its role.
const SETTLE: Duration = Duration::from_secs(30);
/// Time of a workload that must fail.
const REFUSAL: Duration = Duration::from_secs(30);
/// Time over which polls are measured.
const MEASURED: Duration = Duration::from_secs(30);
/// Part of a core that polls may use (SPEC §11.5).
const BUDGET: f64 = 0.01;
/// Time that the container engine and the agent may take on top of the engine's own stop.
const STOP_MARGIN: f64 = 10.0;
/// Moments at which a call is killed, in milliseconds.
const KILLS: [&str; 3] = ["1", "40", "200"];

/// Writes are acknowledged and read back.
pub fn serves(kit: &mut Kit) -> Result<()> {
    kit.write_more()?;
    kit.verify()
}

/// Client, admin and metrics ports accept connections; peers' ports may open only when there are peers.
pub fn ports(kit: &mut Kit) -> Result<()> {
    let member = kit.last()?;
    let address = kit.world.machine(|machine| machine.address_of(&member)).unwrap_or_default();
    for port in &kit.claims.manifest.ports {
        if port.protocol != Protocol::Tcp || port.purpose == PortPurpose::Peer {
            continue;
        }
        let socket = SocketAddr::new(address.parse()?, port.port);
        let opens = || Ok(TcpStream::connect_timeout(&socket, Duration::from_secs(1)).is_ok().then_some(()));
        kit.wait(&format!("port {} ({}) accepts connections", port.name, port.port), SETTLE, opens)?;
    }
    Ok(())
}

/// A component with a leader has one, which says so and takes writes.
pub fn role(kit: &mut Kit) -> Result<()> {
    kit.wait("a member whose `role` says leader and writable", SETTLE, || Ok(leader(kit).map(drop)))
}

/// The member that leads now, by its own word.
pub fn leader(kit: &Kit) -> Option<String> {
    for member in kit.members() {
        let Ok(answer) = kit.call(&member, Verb::Role, &[]) else { continue };
        let output = answer.result.output.unwrap_or_default();
        if answer.exit == Exit::Done && output["role"] == "leader" && output["writable"] == true {
            return Some(member);
        }
    }
    None
}

/// Neither a wrong password nor none opens the door.
pub fn wrong_password(kit: &mut Kit) -> Result<()> {
    let hosts = kit.hosts(&kit.members());
    for (what, password) in [("a wrong password", "wrong-password-of-the-kit"), ("no password", "")] {
        let said = kit.workload("verify", 1, &hosts, password, REFUSAL);
        ensure!(said.is_err(), "the workload got in with {what}");
    }
    kit.verify()
}

/// The same request twice gives the same files, arguments and environment.
pub fn render_is_pure(kit: &mut Kit) -> Result<()> {
    let member = kit.last()?;
    let first = kit.output(&member, Verb::Render)?;
    let second = kit.output(&member, Verb::Render)?;
    // Files below the scratch directory of a call have its name in their path.
    let plain = |output: &Value| {
        let mut output = output.clone();
        for file in output["files"].as_array_mut().into_iter().flatten() {
            if let Some(file) = file.as_object_mut() {
                file.remove("from");
            }
        }
        output
    };
    ensure!(plain(&first) == plain(&second), "two calls of render with the same request differ:\n{first}\n{second}");
    Ok(())
}

/// After success, the same call is done and changes nothing (SPEC §7.3).
pub fn repeat(kit: &mut Kit) -> Result<()> {
    let member = kit.last()?;
    for verb in repeatable(&kit.claims) {
        until_done(kit, &member, verb)?;
        let again = until_done(kit, &member, verb)?;
        ensure!(!again.result.changed, "{} was done, and says `changed: true` when it is called again", verb.name());
    }
    Ok(())
}

/// Two calls at the same time: each is done, or says busy (SPEC §7.3).
pub fn at_once(kit: &mut Kit) -> Result<()> {
    let member = kit.last()?;
    for verb in repeatable(&kit.claims) {
        let kit = &*kit;
        let answers = std::thread::scope(|scope| {
            let calls: Vec<_> = (0..2).map(|_| scope.spawn(|| kit.call(&member, verb, &[]))).collect();
            calls
                .into_iter()
                .map(|call| call.join().unwrap_or_else(|_| bail!("a call panicked")))
                .collect::<Result<Vec<_>>>()
        })?;
        for answer in &answers {
            ensure!(
                matches!(answer.exit, Exit::Done | Exit::Busy | Exit::Pending | Exit::Later),
                "{} called twice at once answers {:?}: {:?}",
                verb.name(),
                answer.exit,
                answer.result.error
            );
        }
        until_done(kit, &member, verb)?;
    }
    kit.verify()
}

/// A call that was killed midway is done when it is called again.
pub fn killed(kit: &mut Kit) -> Result<()> {
    let member = kit.last()?;
    for verb in repeatable(&kit.claims) {
        for moment in KILLS {
            kit.call(&member, verb, &["--kill-after-ms", moment])?;
        }
        until_done(kit, &member, verb)?;
    }
    kit.wait_ready(smallest(&kit.claims))?;
    kit.verify()
}

/// Calls a verb until it is not pending, busy or to be called later.
pub fn until_done(kit: &Kit, member: &str, verb: Verb) -> Result<Answer> {
    kit.wait(&format!("{} on {member} is done", verb.name()), kit.patience, || {
        let answer = kit.call(member, verb, &[])?;
        match answer.exit {
            Exit::Done => Ok(Some(answer)),
            Exit::Pending | Exit::Busy | Exit::Later => Ok(None),
            other => bail!("{} on {member} answers {other:?}: {:?}", verb.name(), answer.result.error),
        }
    })
}

/// A newer caller's fields do not disturb (SPEC §6).
pub fn unknown_fields(kit: &mut Kit) -> Result<()> {
    let member = kit.last()?;
    let words = ["surprise=[1,{}]", "cluster.surprise={\"a\":1}", "plan.surprise=true", "resources.surprise=1"];
    let observing = [Verb::Role, Verb::Health, Verb::Render, Verb::Membership, Verb::CanDisrupt];
    let observing = observing.into_iter().filter(|verb| kit.claims.has(*verb));
    for verb in observing.chain(repeatable(&kit.claims)) {
        let plain = kit.call(&member, verb, &[])?.exit;
        let answer = kit.call(&member, verb, &words)?;
        ensure!(
            answer.exit == plain || answer.exit == Exit::Done,
            "{} answers {plain:?}, and {:?} to the same request with unknown fields: {:?}",
            verb.name(),
            answer.exit,
            answer.result.error
        );
    }
    Ok(())
}

/// Why there is no live setting to try.
pub fn no_live(claims: &Claims) -> Option<&'static str> {
    claims.manifest.example(Apply::Live).is_none().then_some("no setting with `apply: live` has an `example`")
}

/// Why there is no setting to try that needs a restart.
pub fn no_restart(claims: &Claims) -> Option<&'static str> {
    claims.manifest.example(Apply::Restart).is_none().then_some("no setting with `apply: restart` has an `example`")
}

/// A live setting is in force without a restart, and taken back as well.
pub fn live_setting(kit: &mut Kit) -> Result<()> {
    let Some((key, value)) = kit.claims.manifest.example(Apply::Live) else { return Ok(()) };
    let member = kit.last()?;
    let starts = engine_starts(kit, &member)?;
    change(kit, &key, Some(&value))?;
    if kit.claims.has(Verb::Reconfigure) {
        let output = until_done(kit, &member, Verb::Reconfigure)?.result.output.unwrap_or_default();
        let waiting = output["pendingRestart"].as_array().into_iter().flatten().any(|waiting| waiting == key.as_str());
        ensure!(!waiting, "{key} is `apply: live`, and reconfigure says that it waits for a restart");
    }
    change(kit, &key, None)?;
    ensure!(engine_starts(kit, &member)? == starts, "changing {key} (apply: live) restarted the engine");
    kit.verify()
}

/// A setting that needs a restart is taken up by one.
pub fn restart_setting(kit: &mut Kit) -> Result<()> {
    let Some((key, value)) = kit.claims.manifest.example(Apply::Restart) else { return Ok(()) };
    let member = kit.last()?;
    let starts = engine_starts(kit, &member)?;
    change(kit, &key, Some(&value))?;
    ensure!(engine_starts(kit, &member)? > starts, "changing {key} (apply: restart) did not restart the engine");
    kit.verify()?;
    change(kit, &key, None)
}

/// Sets or removes a setting, and waits until it is so.
pub fn change(kit: &Kit, key: &str, value: Option<&str>) -> Result<()> {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    kit.edit(|database| match value {
        Some(value) => drop(database.spec.config.insert(key.to_owned(), IntOrString::String(value.to_owned()))),
        None => drop(database.spec.config.remove(key)),
    })?;
    let members = u32::try_from(kit.members().len())?;
    kit.wait_ready(members)
}

/// How often the engine was started in the member's present container.
pub fn engine_starts(kit: &Kit, member: &str) -> Result<usize> {
    Ok(kit.log(member)?.matches("the engine was started").count())
}

/// SIGKILL to everything, and what was acknowledged is there.
pub fn crash(kit: &mut Kit) -> Result<()> {
    kit.write_more()?;
    let member = kit.last()?;
    let starts = engine_starts(kit, &member)?;
    kit.kill(&member)?;
    kit.wait("the engine is started again", kit.patience, || {
        Ok(engine_starts(kit, &member).is_ok_and(|now| now > starts).then_some(()))
    })?;
    kit.wait_ready(smallest(&kit.claims))?;
    kit.verify()
}

/// A stop takes no longer than the manifest says, and needs no SIGKILL.
pub fn stops(kit: &mut Kit) -> Result<()> {
    let member = kit.last()?;
    ends_in_time(kit, &member, true)?;
    kit.wait_ready(smallest(&kit.claims))?;
    kit.verify()
}

/// Stops a member by deleting its pod; fails when that takes longer than the manifest allows. With `gracefully` also when the
/// engine had to be killed.
pub fn ends_in_time(kit: &Kit, member: &str, gracefully: bool) -> Result<()> {
    let manifest = &kit.claims.manifest;
    let pre_stop = if kit.claims.has(Verb::PreStop) { manifest.rule(Verb::PreStop).timeout_seconds } else { 0 };
    let allowed = f64::from(pre_stop + manifest.stop.total_seconds()) + STOP_MARGIN;
    kit.take_ends();
    let container = kit.world.machine(|machine| machine.container(member).map(str::to_owned))?;
    kit.delete_pods(&[member.to_owned()], None)?;
    let ends = kit.take_ends();
    let Some((_, seconds, code)) = ends.into_iter().find(|(name, ..)| name == member) else {
        bail!("nobody saw how {member} ended");
    };
    ensure!(seconds <= allowed, "the stop took {seconds:.0} s; the manifest allows {allowed:.0} s");
    let log = kit.saved_log(&container)?;
    let was_killed = code != 0 || log.contains("the engine did not stop in time");
    ensure!(!gracefully || !was_killed, "the engine did not end by the signals of stop.sequence: it had to be killed");
    Ok(())
}

/// `role` and `health` of a settled member use less than 1 % of a core.
pub fn budget(kit: &mut Kit) -> Result<()> {
    let member = kit.last()?;
    let first = kit.first_process(&member)?;
    // After a change members are asked more often for a while.
    std::thread::sleep(Duration::from_secs(15));
    let (before, started) = (processes::children_milliseconds(first), Instant::now());
    std::thread::sleep(MEASURED.max(Duration::from_secs(u64::from(kit.claims.manifest.poll.seconds) * 5)));
    let used = processes::children_milliseconds(first).saturating_sub(before);
    let share = Duration::from_millis(used).as_secs_f64() / started.elapsed().as_secs_f64();
    ensure!(
        share < BUDGET,
        "role and health use {:.1} % of a core; {:.0} % are allowed",
        share * 100.0,
        BUDGET * 100.0
    );
    Ok(())
}
