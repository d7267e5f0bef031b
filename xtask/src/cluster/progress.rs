//! What the commands show while they work: one line per step, with the time that it took.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::Result;

/// Runs one step and prints its name and its time. The name comes first, so that it is seen what is being waited for.
pub fn step<T>(name: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    print!("  {name:<58}");
    flush();
    let result = act();
    let outcome = if result.is_ok() { "" } else { "  failed" };
    println!("{:>8}{outcome}", seconds(started.elapsed()));
    result
}

/// A line that belongs to a step which speaks for itself.
pub fn note(text: &str) {
    println!("  {text}");
    flush();
}

/// `0.4 s`, `12.0 s`, `3 min 20 s`.
pub fn seconds(elapsed: Duration) -> String {
    if elapsed < Duration::from_mins(1) {
        format!("{:.1} s", elapsed.as_secs_f64())
    } else {
        format!("{} min {} s", elapsed.as_secs() / 60, elapsed.as_secs() % 60)
    }
}

fn flush() {
    // A closed standard output must not stop the work.
    let _ = std::io::stdout().flush();
}
