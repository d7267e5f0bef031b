//! Level 2: members that come, go, are lost, and return when they should not.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use backlot_api::database::DeletionPolicy;
use backlot_standard::config::Apply;
use backlot_standard::layout;
use backlot_standard::manifest::Elections;
use backlot_standard::result::Exit;
use backlot_standard::verb::Verb;
use k8s_openapi::api::core::v1::Pod;

use super::member::{change, ends_in_time, engine_starts, leader, until_done};
use super::{bound, smallest, three};
use crate::files::{copy, empty};
use crate::kit::Kit;
use crate::processes::{self, Killer};
use crate::world::NAMESPACE;

/// Time in which a lost majority must be said, and in which a write that cannot be acknowledged must not be.
const REFUSAL: Duration = Duration::from_mins(1);
/// Time for which a member that must do no harm is watched.
const WATCHED: Duration = Duration::from_secs(20);

fn cluster_uid(kit: &Kit) -> Result<String> {
    kit.database()?.status.and_then(|status| status.cluster_uid).context("the Database has no cluster UID")
}

/// Grows to three while the first calls of `clone` and `join` are killed.
pub fn grow_with_kills(kit: &mut Kit) -> Result<()> {
    kit.write_more()?;
    let uid = cluster_uid(kit)?;
    let verbs = [Verb::Clone, Verb::Join].into_iter().filter(|verb| kit.claims.has(*verb));
    let killers: Vec<_> = verbs.map(|verb| (verb, Killer::of(verb, &uid))).collect();
    kit.resize(three(&kit.claims))?;
    for (verb, killer) in &killers {
        ensure!(killer.killed() > 0, "no call of {} was seen, so none could be killed", verb.name());
    }
    kit.write_more()?;
    kit.verify()
}

/// Shrinks to the smallest size and back to three while the first calls of `leave` (or `forget`) are killed.
pub fn shrink_with_kills(kit: &mut Kit) -> Result<()> {
    kit.write_more()?;
    let verb = [Verb::Leave, Verb::Forget].into_iter().find(|verb| kit.claims.has(*verb));
    let killer = verb.map(|verb| cluster_uid(kit).map(|uid| Killer::of(verb, &uid))).transpose()?;
    kit.resize(smallest(&kit.claims))?;
    let kills = killer.as_ref().map(Killer::killed);
    ensure!(kills != Some(0), "no call of {} was seen, so none could be killed", verb.map_or("leave", Verb::name));
    drop(killer);
    kit.verify()?;
    kit.write_more()?;
    kit.resize(three(&kit.claims))?;
    kit.verify()
}

/// The last member's container is killed; it comes back with its data.
pub fn lost_container(kit: &mut Kit) -> Result<()> {
    kit.write_more()?;
    let member = kit.last()?;
    kit.hold_down(std::slice::from_ref(&member))?;
    kit.release();
    std::thread::sleep(Duration::from_secs(2));
    kit.wait_ready(three(&kit.claims))?;
    kit.verify()
}

/// One member is away, and where the engine elects it is the leader; writes go on, and nothing is lost.
pub fn one_away(kit: &mut Kit) -> Result<()> {
    let elects = kit.claims.manifest.elections == Elections::Engine;
    let victim = leader(kit).filter(|_| elects).map_or_else(|| kit.last(), Ok)?;
    kit.hold_down(std::slice::from_ref(&victim))?;
    let written = kit.write_more();
    let verified = kit.verify();
    kit.release();
    written.and(verified).with_context(|| format!("while {victim} is away"))?;
    kit.wait_ready(three(&kit.claims))?;
    kit.verify()
}

/// Two of three are away: the third says so and acknowledges nothing.
pub fn no_majority(kit: &mut Kit) -> Result<()> {
    let members = kit.members();
    let (first, others) = members.split_first().context("there is no member")?;
    kit.hold_down(others)?;
    let told = kit.wait("`health` says noQuorum, or not ready", REFUSAL, || {
        let answer = kit.call(first, Verb::Health, &[])?;
        let output = answer.result.output.unwrap_or_default();
        let is_said = output["cluster"] == "noQuorum" || output["ready"] == false;
        Ok((answer.exit == Exit::Done && is_said).then_some(()))
    });
    let hosts = kit.hosts(std::slice::from_ref(first));
    let written = kit.workload("write", kit.records + 5, &hosts, &kit.password()?, REFUSAL);
    kit.release();
    told?;
    ensure!(written.is_err(), "{first} acknowledged writes without a majority");
    kit.wait_ready(three(&kit.claims))?;
    kit.verify()
}

/// A member stops in its time also when the others are away.
pub fn stop_without_majority(kit: &mut Kit) -> Result<()> {
    let members = kit.members();
    let (first, others) = members.split_first().context("there is no member")?;
    kit.hold_down(others)?;
    let ended = ends_in_time(kit, first, false);
    kit.release();
    ended?;
    kit.wait_ready(three(&kit.claims))?;
    kit.verify()
}

/// All members are lost at once, and start beside each other: with new addresses, then with each other's.
pub fn swapped_addresses(kit: &mut Kit) -> Result<()> {
    kit.write_more()?;
    let members = kit.members();
    kit.delete_pods(&members, Some(0))?;
    kit.wait_ready(three(&kit.claims)).context("with new addresses")?;
    kit.verify()?;
    {
        let mut cluster = kit.world.cluster();
        // New pods wait until the old ones have given their addresses back.
        cluster.trouble.scheduling = true;
        let machine = cluster.workload();
        for (index, member) in members.iter().enumerate() {
            let next = &members[(index + 1) % members.len()];
            let address = machine.address_of(next).context("a member without an address")?;
            machine.wanted_addresses.insert(member.clone(), address);
        }
    }
    let deleted = kit.delete_pods(&members, Some(0));
    kit.world.cluster().trouble.scheduling = false;
    deleted?;
    kit.wait_ready(three(&kit.claims)).context("with each other's addresses")?;
    kit.verify()
}

/// A member whose data is gone, under its old name, never serves an empty database.
pub fn wiped_volume(kit: &mut Kit) -> Result<()> {
    kit.write_more()?;
    let member = kit.last()?;
    let volumes = kit.volumes(&member)?;
    let saved: Vec<PathBuf> = volumes.iter().map(|volume| volume.with_extension("saved")).collect();
    kit.hold_down(std::slice::from_ref(&member))?;
    for (volume, copied) in volumes.iter().zip(&saved) {
        copy(volume, copied)?;
        // The agent's stamp stays: what is tested is the image.
        empty(volume, layout::STATE_DIR)?;
    }
    kit.release();
    let watched = watch_wiped(kit, &member);
    kit.hold_down(std::slice::from_ref(&member)).ok();
    for (volume, copied) in volumes.iter().zip(&saved) {
        std::fs::remove_dir_all(volume)?;
        std::fs::rename(copied, volume)?;
    }
    // Its folder is another one now: the container has to be made anew.
    kit.delete_pods(std::slice::from_ref(&member), Some(0))?;
    kit.release();
    watched?;
    kit.wait_ready(three(&kit.claims))?;
    kit.verify()
}

fn watch_wiped(kit: &Kit, member: &str) -> Result<()> {
    let others: Vec<String> = kit.members().into_iter().filter(|other| other != member).collect();
    let end = Instant::now() + WATCHED;
    while Instant::now() < end {
        let missing = kit.missing_through(&[member.to_owned()], Duration::from_secs(8))?;
        if let Some(missing) = missing.filter(|missing| *missing > 0) {
            bail!("{member} lost its data and serves a database in which {missing} acknowledged records are missing");
        }
    }
    kit.verify_through(&others).context("through the members that kept their data")
}

/// A setting that needs a restart goes through all members, and nothing is lost.
pub fn roll(kit: &mut Kit) -> Result<()> {
    let Some((key, value)) = kit.claims.manifest.example(Apply::Restart) else { return Ok(()) };
    let starts = |kit: &Kit| kit.members().iter().map(|member| engine_starts(kit, member)).collect::<Result<Vec<_>>>();
    let before = starts(kit)?;
    change(kit, &key, Some(&value))?;
    let is_restarted = before.iter().zip(starts(kit)?).all(|(before, now)| now > *before);
    ensure!(is_restarted, "changing {key} (apply: restart) did not restart every member");
    kit.verify()?;
    change(kit, &key, None)?;
    kit.write_more()?;
    kit.verify()
}

/// A member that left returns with its old volume and its old view, as a node that was off for a while does.
pub fn forgotten_member(kit: &mut Kit) -> Result<()> {
    kit.write_more()?;
    let member = kit.last()?;
    let pod: Pod = kit.world.server.get(NAMESPACE, &member).context("no pod")?;
    kit.hold_down(std::slice::from_ref(&member))?;
    let folders = keep_folders(kit, &member, &pod);
    kit.release();
    let folders = folders?;
    kit.wait_ready(three(&kit.claims))?;
    let shrunk = shrunk(kit);
    kit.resize(shrunk)?;
    kit.write_more()?;
    let before = membership(kit)?;
    let ghost = kit.world.machine(|machine| machine.start_ghost(&pod, &folders))?;
    let watched = watch_ghost(kit, before.as_deref());
    let removed = kit.engine.remove(&[&ghost]);
    for folder in folders.values() {
        std::fs::remove_dir_all(folder)?;
    }
    watched?;
    removed?;
    kit.wait_ready(shrunk)?;
    kit.resize(three(&kit.claims))?;
    kit.verify()
}

/// One member fewer, or two where the number must be odd.
fn shrunk(kit: &Kit) -> u32 {
    let is_odd = bound(&kit.claims).is_some_and(|component| component.members.odd);
    let fewer = three(&kit.claims) - if is_odd { 2 } else { 1 };
    fewer.max(smallest(&kit.claims))
}

/// Copies of everything that the pod has mounted, by the name of the pod's volume.
fn keep_folders(kit: &Kit, member: &str, pod: &Pod) -> Result<BTreeMap<String, PathBuf>> {
    let memory = kit.world.machine(|machine| machine.memory(member))?;
    let mut persistent = kit.volumes(member)?.into_iter();
    let mut folders = BTreeMap::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let from = match &volume.persistent_volume_claim {
            Some(_) => persistent.next().context("a claim without a volume")?,
            None => memory.join(&volume.name),
        };
        let to = match &volume.persistent_volume_claim {
            Some(_) => from.with_extension("ghost"),
            None => memory.with_extension("ghost").join(&volume.name),
        };
        std::fs::create_dir_all(to.parent().context("a folder lies in one")?)?;
        copy(&from, &to)?;
        folders.insert(volume.name.clone(), to);
    }
    Ok(folders)
}

fn membership(kit: &Kit) -> Result<Option<String>> {
    if !kit.claims.has(Verb::Membership) {
        return Ok(None);
    }
    let first = kit.members().into_iter().next().context("there is no member")?;
    let answer = until_done(kit, &first, Verb::Membership)?;
    let output = answer.result.output.unwrap_or_default();
    let mut ids: Vec<String> = output["members"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|member| format!("{} {}", member["id"], member["vote"]))
        .collect();
    ids.sort();
    Ok(Some(ids.join(", ")))
}

fn watch_ghost(kit: &mut Kit, before: Option<&str>) -> Result<()> {
    std::thread::sleep(WATCHED);
    kit.write_more().context("with a member back that had left")?;
    kit.verify()?;
    let after = membership(kit)?;
    ensure!(
        before == after.as_deref(),
        "a member that had left came back: the engine's members were [{}], and are [{}]",
        before.unwrap_or_default(),
        after.unwrap_or_default()
    );
    Ok(())
}

/// Deleted with `Retain`, and made again under the same name: the data is there.
pub fn take_back(kit: &mut Kit) -> Result<()> {
    kit.write_more()?;
    kit.edit(|database| database.spec.deletion_policy = DeletionPolicy::Retain)?;
    kit.wait_ready(three(&kit.claims))?;
    let spec = serde_json::to_value(&kit.database()?.spec)?;
    kit.delete()?;
    kit.create_with(&spec)?;
    kit.wait_ready(three(&kit.claims))?;
    kit.edit(|database| database.spec.deletion_policy = DeletionPolicy::Delete)?;
    kit.verify()
}

/// No generated secret is in what members print, nor in arguments and environments of processes, while every verb is called.
pub fn secrets(kit: &mut Kit) -> Result<()> {
    let values = kit.secret_values();
    let mut found = std::collections::BTreeSet::new();
    let member = kit.last()?;
    let first = kit.first_process(&member)?;
    let verbs =
        [Verb::Render, Verb::Role, Verb::Health, Verb::Membership, Verb::PostStart, Verb::Reconfigure, Verb::Join];
    let verbs: Vec<Verb> = verbs.into_iter().filter(|verb| kit.claims.has(*verb)).collect();
    {
        let kit = &*kit;
        std::thread::scope(|scope| -> Result<()> {
            let calls = scope.spawn(|| verbs.iter().try_for_each(|verb| kit.call(&member, *verb, &[]).map(drop)));
            while !calls.is_finished() {
                found.extend(processes::leaks(first, &values));
            }
            calls.join().unwrap_or_else(|_| bail!("a call panicked"))
        })?;
    }
    for member in kit.members() {
        let log = kit.log(&member)?;
        let told = values.iter().filter(|(_, value)| log.contains(value.as_str()));
        found.extend(told.map(|(name, _)| format!("the secret {name} in what {member} prints")));
    }
    ensure!(found.is_empty(), "{}", found.into_iter().collect::<Vec<_>>().join("; "));
    Ok(())
}
