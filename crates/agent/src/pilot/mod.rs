//! The pilot: everything that can fail, so that the keeper need not.
//!
//! One thread, one event loop, one place of state. Tasks decide on the state by pure functions (`lifecycle`,
//! `leadership`, `config`) and are woken by every change of it. Invariant: each task starts from what is known now, so a
//! pilot that is killed anywhere is followed by one that goes on where the world is.

pub mod api;
pub mod config;
pub mod disk;
pub mod driver;
pub mod engine;
pub mod identity;
pub mod image;
pub mod inspect;
pub mod journal;
pub mod lanes;
pub mod leadership;
pub mod lifecycle;
pub mod metrics;
pub mod operations;
pub mod polls;
pub mod reactions;
pub mod render;
pub mod replace;
pub mod request;
pub mod secrets;
pub mod server;
pub mod start;
pub mod state;
pub mod status;
pub mod tls;
pub mod verb_run;
pub mod view;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use backlot_standard::layout;
use backlot_standard::status::{AgentBuild, ConfigStatus};
use tokio::sync::{Notify, watch};

use crate::args::Settings;
use crate::log::{self, Level};
use crate::paths::Paths;
use crate::protocol::{Hello, ToKeeper};
use engine::KeeperLink;
use image::Image;
use state::State;

/// Environment variables of the pod template and of Kubernetes: not the image's, so not the verbs' business.
const NOT_THE_IMAGES: &[&str] = &["BACKLOT_", "KUBERNETES_", "DB_"];

/// Who this member is, as the pod template says.
#[derive(Clone, Debug)]
pub struct MemberName {
    /// Member id.
    pub id: String,
    /// UID of its cluster.
    pub cluster_uid: String,
    /// Present address; empty when not known.
    pub address: String,
}

impl MemberName {
    /// Reads the environment that the pod template gives.
    pub fn from_env() -> Self {
        let read = |name: &str| std::env::var(name).unwrap_or_default();
        Self {
            id: read(layout::env::MEMBER),
            cluster_uid: read(layout::env::CLUSTER_UID),
            address: read(layout::env::POD_IP),
        }
    }
}

/// The pilot's parts. Shared by its tasks, which all run on one thread.
pub struct Pilot {
    /// Settings of the process.
    pub settings: Settings,
    /// Who this is.
    pub member: MemberName,
    /// What is in the image, or why it cannot be used.
    pub image: Result<Image, String>,
    /// Directory of the agent's state.
    pub state_directory: PathBuf,
    /// Whether that is on a volume, not on tmpfs.
    pub is_volume: bool,
    /// Identity and trust.
    pub identity: RefCell<tls::Identity>,
    /// Version and digest of this binary.
    pub build: AgentBuild,
    /// The keeper's process.
    pub keeper_pid: nix::unistd::Pid,
    /// Run of the container, and number of the pilot in it.
    pub hello: Hello,
    /// What is known.
    pub state: RefCell<State>,
    /// The operations.
    pub journal: RefCell<journal::Journal>,
    /// One write to the journal at a time.
    pub journal_writes: tokio::sync::Mutex<()>,
    /// One view at a time.
    pub view_writes: tokio::sync::Mutex<()>,
    /// Secrets on tmpfs.
    pub secrets: RefCell<secrets::Secrets>,
    /// The verbs' lanes.
    pub lanes: lanes::Lanes,
    /// The keeper.
    pub keeper: KeeperLink,
    /// Counts changes of the state.
    pub changed: watch::Sender<u64>,
    /// Asks for a poll now.
    pub poll_now: Notify,
    /// Last published report.
    pub published: RefCell<Option<status::Published>>,
    /// Number of the next call.
    pub next_call: Cell<u64>,
}

impl Pilot {
    /// Changes the state and wakes everybody who decides on it.
    pub fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state.borrow_mut());
        self.changed.send_modify(|count| *count += 1);
        result
    }
}

/// Environment of verbs and engine beside their own: `PATH`, `HOME`, `TZ`, `LANG` and the image's.
pub fn base_env(paths: &Paths) -> BTreeMap<String, String> {
    let images = |name: &str| !NOT_THE_IMAGES.iter().any(|prefix| name.starts_with(prefix));
    let mut env: BTreeMap<String, String> = std::env::vars().filter(|(name, _)| images(name)).collect();
    env.insert("HOME".to_owned(), paths.run().join("home").display().to_string());
    env.entry("PATH".to_owned())
        .or_insert_with(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    env.entry("TZ".to_owned()).or_insert_with(|| "UTC".to_owned());
    env.entry("LANG".to_owned()).or_insert_with(|| "C.UTF-8".to_owned());
    env
}

/// Runs the pilot; standard input is the socket to the keeper.
pub fn run(settings: Settings) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Threads for disk work only; they end when idle.
        .max_blocking_threads(4)
        .thread_keep_alive(Duration::from_secs(1))
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail("the runtime cannot start", &error),
    };
    let tasks = tokio::task::LocalSet::new();
    match tasks.block_on(&runtime, pilot(settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail("the pilot cannot go on", &error),
    }
}

fn fail(message: &str, error: &dyn std::fmt::Display) -> ExitCode {
    log::event(Level::Error, message, &[("error", error)]);
    ExitCode::FAILURE
}

/// Why the pilot cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum PilotError {
    /// The keeper's socket.
    #[error("the connection to the keeper: {0}")]
    Keeper(std::io::Error),
    /// The environment of the pod template.
    #[error("{} and {} must be set by the pod template", layout::env::MEMBER, layout::env::CLUSTER_UID)]
    Environment,
    /// The TLS identity.
    #[error(transparent)]
    Identity(#[from] tls::IdentityError),
    /// The tmpfs or the API's port.
    #[error("{what}: {error}")]
    Start {
        /// What.
        what: String,
        /// Why.
        error: std::io::Error,
    },
}

async fn pilot(settings: Settings) -> Result<(), PilotError> {
    let (keeper, incoming, hello) = engine::connect(settings.silence).await.map_err(PilotError::Keeper)?;
    let member = MemberName::from_env();
    if member.id.is_empty() || member.cluster_uid.is_empty() {
        return Err(PilotError::Environment);
    }
    let started = |what: &str, result: std::io::Result<()>| {
        result.map_err(|error| PilotError::Start { what: what.to_owned(), error })
    };
    started("/run/db cannot be prepared", prepare_tmpfs(&settings))?;
    let image = image::load(&settings.paths);
    let identity = tls::Identity::load(&settings.paths.at(layout::IDENTITY_DIR))?;
    let (state_directory, is_volume, state) = load_state(&settings, &member, &image, &hello);
    // What lies on somebody else's volume is not ours to go on with.
    let ours = matches!(state.volume, identity::Volume::None | identity::Volume::Ours { .. });
    let pilot = Rc::new(Pilot {
        journal: RefCell::new(if ours {
            journal::Journal::load(&state_directory)
        } else {
            journal::Journal::default()
        }),
        settings,
        member,
        image,
        state_directory,
        is_volume,
        identity: RefCell::new(identity),
        build: AgentBuild { version: crate::VERSION.to_owned(), sha256: replace::own_sha256() },
        keeper_pid: nix::unistd::getppid(),
        hello,
        state: RefCell::new(state),
        journal_writes: tokio::sync::Mutex::new(()),
        view_writes: tokio::sync::Mutex::new(()),
        secrets: RefCell::default(),
        lanes: lanes::Lanes::default(),
        keeper,
        changed: watch::Sender::new(0),
        poll_now: Notify::new(),
        published: RefCell::new(None),
        next_call: Cell::new(0),
    });
    let epoch = pilot.journal.borrow().seen_epoch();
    pilot.update(|state| state.seen_epoch = state.seen_epoch.max(epoch));
    let listener = server::listen(pilot.settings.listen)
        .map_err(|error| PilotError::Start { what: format!("cannot listen on {}", pilot.settings.listen), error })?;
    let heart = engine::spawn(&pilot, incoming);
    tokio::task::spawn_local(server::serve(listener, pilot.clone()));
    operations::resume(&pilot);
    tokio::task::spawn_local(driver::run(pilot.clone()));
    tokio::task::spawn_local(polls::run(pilot.clone()));
    tokio::task::spawn_local(reactions::lead(pilot.clone()));
    tokio::task::spawn_local(reactions::configure(pilot.clone()));
    pilot.keeper.send(ToKeeper::Ready);
    let identity: [(&str, &dyn std::fmt::Display); 3] =
        [("member", &pilot.member.id), ("version", &crate::VERSION), ("run", &pilot.hello.run)];
    log::event(Level::Info, "the pilot is at work", &identity);
    replace::settle(&pilot);
    // Ends with the keeper: without one nobody could start or stop the engine.
    let _ = heart.await;
    Err(PilotError::Keeper(std::io::Error::other("the keeper is gone")))
}

fn prepare_tmpfs(settings: &Settings) -> std::io::Result<()> {
    let session = settings.paths.session();
    std::fs::create_dir_all(&session)?;
    std::fs::create_dir_all(settings.paths.run().join("home"))?;
    // What an earlier pilot was doing was ended by its end.
    match std::fs::remove_dir_all(session.join("calls")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn load_state(
    settings: &Settings,
    member: &MemberName,
    image: &Result<Image, String>,
    hello: &Hello,
) -> (PathBuf, bool, State) {
    let manifest = image.as_ref().map(|image| &image.manifest);
    let (directory, is_volume) = match manifest {
        Ok(manifest) => identity::state_directory(&settings.paths, manifest),
        Err(_) => (settings.paths.session().join("state"), false),
    };
    let volume = identity::claim(&directory, is_volume, &member.cluster_uid, &member.id);
    let ours = matches!(volume, identity::Volume::None | identity::Volume::Ours { .. });
    let view = if ours { view::load(&directory, &member.cluster_uid) } else { None };
    let session = engine::load_session(&settings.paths.session(), hello);
    let state = State {
        seen_epoch: view.as_ref().map_or(0, |held| held.view.operator_epoch),
        view,
        view_unsaved: false,
        volume,
        engine: state::Engine {
            running: hello.engine,
            since: hello.engine.map(|_| std::time::Instant::now()),
            starts: hello.starts,
            started_at: hello.engine.map(|engine| engine.at),
            last_exit: hello.last_exit.clone().map(Into::into),
            crashed: hello.engine.is_none() && hello.last_exit.is_some(),
            ..state::Engine::default()
        },
        data: None,
        reported_data: None,
        role: None,
        health: None,
        config: ConfigStatus::default(),
        blocked: None,
        orders: std::collections::VecDeque::new(),
        rejected: None,
        held: ours && directory.join(driver::HELD).exists(),
        found_done: ours && directory.join(driver::FOUNDED).exists(),
        terminating: hello.terminating,
        quiescent: false,
        keeper_silent: false,
        session,
        pause_until: None,
        failures: 0,
        counters: state::Counters::default(),
    };
    (directory, is_volume, state)
}
