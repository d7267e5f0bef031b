//! A run of the kit: looks at the image, sets up the world, goes through the checks, cleans up.
//!
//! Invariant: whatever ends a run, also Ctrl-C, its containers, networks and folders are gone, unless `--keep` was asked for.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use backlot_standard::result::Exit;
use backlot_testkit::api_server::ApiServer;

use crate::checks::{self, ALL, Check, NOT_YET, NotYet, Stage, Static};
use crate::engine::Engine;
use crate::kit::{Claims, Kit, complaint};
use crate::machine::{self, Machine, Places};
use crate::processes;
use crate::report::{self, Outcome, Results, Verdict, line, say};
use crate::world::World;

/// What to test and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The image.
    pub image: String,
    /// The container engine, when not the first that answers.
    pub engine: Option<PathBuf>,
    /// The agent's static binary.
    pub agent: PathBuf,
    /// Highest level to test.
    pub level: u8,
    /// Names of the checks to run; all when empty.
    pub only: Vec<String>,
    /// Leave containers and folders.
    pub keep: bool,
    /// Folder for results and logs.
    pub results: PathBuf,
    /// Longest time that anything is waited for.
    pub patience: Duration,
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Tells a run to end: checks end at their next wait.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Whether the run was told to end.
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Runs the kit and answers what was found. An error means that the kit itself could not work.
pub fn run(options: &Options) -> Result<Results> {
    let unknown = options.only.iter().find(|name| !names().any(|known| known == name.as_str()));
    if let Some(unknown) = unknown {
        bail!("--only {unknown}: there is no such check; there are {}", names().collect::<Vec<_>>().join(", "));
    }
    if !options.agent.is_file() {
        bail!("the agent {} is no file: name its static binary with --agent", options.agent.display());
    }
    let started = Instant::now();
    let engine = Engine::find(options.engine.as_deref())?;
    report::check_folder(&options.results)?;
    say(&format!("{} with {}", options.image, engine.name()));
    let image = Static::of(&engine, &options.image)?;
    let mut results = Results {
        standard: backlot_standard::STANDARD.to_owned(),
        kit: env!("CARGO_PKG_VERSION").to_owned(),
        image: options.image.clone(),
        image_id: image.id.clone(),
        engine: String::new(),
        version: String::new(),
        tested_with: image.tested_with(),
        at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        seconds: 0.0,
        memory_bytes: None,
        only: options.only.clone(),
        outcomes: vec![],
    };
    if let Some(claims) = look(&image, options, &mut results)
        && options.level >= 1
    {
        live(&engine, options, claims, &mut results)?;
    }
    results.seconds = started.elapsed().as_secs_f64();
    results.write(&options.results)?;
    Ok(results)
}

/// Names of the checks that need a running engine.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|check| check.name)
}

fn tell(results: &mut Results, outcome: Outcome) {
    say(&line(&outcome));
    results.outcomes.push(outcome);
}

fn note(results: &mut Results, level: u8, check: &str, started: Instant, outcome: Result<()>) -> bool {
    let is_good = outcome.is_ok();
    let verdict = if is_good { Verdict::Passed } else { Verdict::Failed };
    let reason = outcome.err().map(|error| format!("{error:#}")).unwrap_or_default();
    let seconds = started.elapsed().as_secs_f64();
    tell(results, Outcome { level, check: check.to_owned(), verdict, seconds, reason });
    is_good
}

/// Level 0. Answers the claims when the image can be run at all.
fn look(image: &Static, options: &Options, results: &mut Results) -> Option<Claims> {
    let started = Instant::now();
    let claims = match image.claims() {
        Ok(claims) => claims,
        Err(error) => {
            note(results, 0, "manifest-keeps-the-standard", started, Err(error));
            return None;
        }
    };
    results.engine.clone_from(&claims.manifest.engine);
    results.version.clone_from(&claims.manifest.version);
    let all: [(&str, Result<()>); 6] = [
        ("manifest-keeps-the-standard", Ok(())),
        ("image-is-for-this-machine", image.architecture()),
        ("labels-say-what-the-manifest-says", image.labels(&claims)),
        ("user-is-not-root", image.user()),
        ("verbs-are-there", image.verbs(&claims)),
        ("nothing-of-the-callers-inside", image.nothing_of_ours(&claims)),
    ];
    let mut is_usable = true;
    for (check, outcome) in all {
        let is_good = note(results, 0, check, started, outcome);
        is_usable &= is_good || !matches!(check, "image-is-for-this-machine" | "verbs-are-there");
    }
    if !is_usable && options.level > 0 {
        say("  the image cannot be run as it is: levels above 0 are left out");
    }
    is_usable.then_some(claims)
}

/// Removes what a run made when it ends, however it ends.
struct CleanUp<'a> {
    engine: &'a Engine,
    run: String,
    places: Places,
}

impl CleanUp<'_> {
    fn clean(&self) -> Result<()> {
        machine::remove_all(self.engine, &self.run)?;
        [&self.places.memory, &self.places.disk].into_iter().filter(|folder| folder.exists()).try_for_each(|folder| {
            std::fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))
        })
    }
}

impl Drop for CleanUp<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.clean() {
            eprintln!("not everything of the run {} could be removed: {error:#}", self.run);
        }
    }
}

/// Levels 1 and above.
fn live(engine: &Engine, options: &Options, claims: Claims, results: &mut Results) -> Result<()> {
    let run = format!("conform-{:06x}", rand::random::<u32>() & 0x00ff_ffff);
    let places = places(&run, &options.results);
    if options.keep {
        say(&format!(
            "  kept: containers and network {run}, {} and {}",
            places.memory.display(),
            places.disk.display()
        ));
        return live_in(engine, options, claims, results, &run, &places);
    }
    let _clean_up = CleanUp { engine, run: run.clone(), places: places.clone() };
    live_in(engine, options, claims, results, &run, &places)
}

fn live_in(
    engine: &Engine,
    options: &Options,
    claims: Claims,
    results: &mut Results,
    run: &str,
    places: &Places,
) -> Result<()> {
    // Processes are told apart by their cluster's UID, also from those of a run beside this one.
    let server = ApiServer::in_world(rand::random());
    let machine = Machine::new(engine.clone(), run, &options.image, &options.agent, places, &server)?;
    let world = World::start(server, machine, &options.results.join("operator.log"))?;
    let mut kit = Kit::new(engine.clone(), world, claims, &options.image, run, options.patience);
    let started = Instant::now();
    if note(results, 0, "operator-accepts-the-image", started, kit.make_class()) {
        for check in ALL.iter().filter(|check| check.level <= options.level) {
            if is_interrupted() {
                break;
            }
            if options.only.is_empty() || options.only.iter().any(|name| name == check.name) {
                one(&mut kit, check, results);
            }
        }
        let concerns = |later: &&NotYet| later.level <= options.level && (later.concerns)(&kit.claims);
        for later in NOT_YET.iter().filter(concerns) {
            let (check, reason) = (later.name.to_owned(), later.reason.to_owned());
            tell(results, Outcome { level: later.level, check, verdict: Verdict::NotClaimed, seconds: 0.0, reason });
        }
    }
    kit.world.machine(|machine| machine.save_logs());
    kit.world.stop();
    Ok(())
}

fn one(kit: &mut Kit, check: &Check, results: &mut Results) {
    let started = Instant::now();
    let outcome = |verdict, reason: String| Outcome {
        level: check.level,
        check: check.name.to_owned(),
        verdict,
        seconds: started.elapsed().as_secs_f64(),
        reason,
    };
    if let Some(reason) = (check.not_claimed)(&kit.claims) {
        return tell(results, outcome(Verdict::NotClaimed, reason.to_owned()));
    }
    if let Some(stage) = kit.broken_stage.filter(|stage| *stage <= check.stage) {
        let reason = format!("not set up: a Database {} did not come up before", stage.describe());
        return tell(results, outcome(Verdict::NotTested, reason));
    }
    let is_new = !kit.has_database();
    if let Err(error) = set_up(kit, check.stage) {
        // Whatever is waited for once more would be waited for in vain.
        kit.broken_stage = kit.broken_stage.or(is_new.then_some(check.stage));
        clear(kit);
        return tell(results, outcome(Verdict::NotTested, format!("its set-up failed: {error:#}")));
    }
    let started = Instant::now();
    note(
        results,
        check.level,
        check.name,
        started,
        (check.run)(kit).and_then(|()| answers_keep_the_standard(kit, check.level)),
    );
    measure(kit, results);
    // What a failed check left behind must not fail the next one.
    if results.outcomes.last().is_some_and(|last| last.verdict == Verdict::Failed) {
        clear(kit);
    }
}

/// The exit code that an agent complains about.
fn exit_code(line: &str) -> Option<i32> {
    let (_, code) = line.split_once("ended with exit code ")?;
    code.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// No verb answered anything in the agents' own calls that the standard does not know (SPEC §7.2).
fn answers_keep_the_standard(kit: &Kit, level: u8) -> Result<()> {
    for member in kit.members() {
        let log = kit.log(&member)?;
        if let Some(complaint) = log.lines().filter(|line| line.contains("GarbageResult")).find_map(complaint) {
            bail!("{member} says: {complaint}");
        }
        let is_odd = |line: &&str| {
            exit_code(line).is_some_and(|code| code != 31 && Exit::from_code(Some(code)) == Exit::Unknown)
        };
        // Where the kit kills calls of the agent, a verb may end with any code.
        if level == 1
            && let Some(complaint) = log.lines().filter(is_odd).find_map(complaint)
        {
            bail!("{member} says: {complaint} (no exit code of SPEC 7.1)");
        }
    }
    Ok(())
}

/// Removes the Database, so that the next check begins with a new one.
fn clear(kit: &Kit) {
    kit.release();
    kit.world.cluster().trouble.scheduling = false;
    if kit.has_database() {
        drop(kit.delete());
    }
}

fn set_up(kit: &mut Kit, stage: Stage) -> Result<()> {
    let members = match stage {
        Stage::One => checks::smallest(&kit.claims),
        Stage::Three => checks::three(&kit.claims),
    };
    let present = u32::try_from(kit.members().len())?;
    if kit.has_database() && present != members {
        kit.delete()?;
    }
    if !kit.has_database() {
        kit.create(members)?;
        kit.wait_ready(members)?;
        if kit.claims.has_workload {
            kit.write(100)?;
        }
        return Ok(());
    }
    kit.wait_ready(members)
}

/// Notes the most memory that the members used together.
fn measure(kit: &Kit, results: &mut Results) {
    let used =
        kit.members().iter().filter_map(|member| kit.first_process(member).ok()).map(processes::memory).sum::<u64>();
    results.memory_bytes = results.memory_bytes.max(Some(used)).filter(|used| *used > 0);
}

fn places(run: &str, results: &Path) -> Places {
    let memory = Path::new("/dev/shm");
    let memory = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    Places {
        memory: memory.join(format!("backlot-{run}")),
        disk: std::env::temp_dir().join(format!("backlot-{run}")),
        logs: results.join("logs"),
    }
}
