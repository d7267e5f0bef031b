//! `GET /metrics`: the agent's own numbers as Prometheus text. Invariant: no label carries anything but fixed words.

use std::fmt::Write;

use backlot_standard::status::EnginePhase;

use super::Pilot;
use crate::process;

impl Pilot {
    /// The numbers as text.
    pub fn metrics(&self) -> String {
        let state = self.state.borrow();
        let manifest = self.image.as_ref().ok().map(|image| &image.manifest);
        let ready = manifest.is_some_and(|manifest| state.is_ready(manifest));
        let writable = state.role.as_ref().is_some_and(|role| role.value.writable);
        let operations = self.journal.borrow().entries().iter().filter(|entry| entry.is_running()).count();
        let mut text = String::new();
        let mut put = |name: &str, kind: &str, help: &str, value: u64| {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        };
        put("backlot_engine_up", "gauge", "Whether the engine runs.", (state.phase() == EnginePhase::Running).into());
        put("backlot_engine_ready", "gauge", "Whether the engine serves its role.", ready.into());
        put("backlot_engine_writable", "gauge", "Whether the engine takes writes.", writable.into());
        put("backlot_engine_starts_total", "counter", "Starts of the engine.", state.engine.starts.into());
        put("backlot_engine_crashes_total", "counter", "Unplanned ends of the engine.", state.counters.crashes);
        put("backlot_verb_calls_total", "counter", "Calls of verbs.", state.counters.verb_calls);
        put(
            "backlot_verb_failures_total",
            "counter",
            "Calls of verbs that were not done.",
            state.counters.verb_failures,
        );
        put("backlot_operations_running", "gauge", "Operations at work.", operations as u64);
        let generation = state.view.as_ref().map_or(0, |held| held.view.generation);
        put("backlot_view_generation", "gauge", "Generation of the cluster view held.", generation);
        put(
            "backlot_member_blocked",
            "gauge",
            "Whether something keeps the member from going on.",
            state.blocked.is_some().into(),
        );
        for (part, pid) in [("keeper", self.keeper_pid), ("pilot", nix::unistd::getpid())] {
            let name = format!("backlot_agent_{part}_resident_bytes");
            put(&name, "gauge", "Resident memory of the process.", process::resident_bytes(pid).unwrap_or(0));
        }
        text
    }
}
