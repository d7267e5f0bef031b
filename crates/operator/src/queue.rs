//! The work queue: every Database is worked on by one worker at a time, soon after something touched it, and later again when
//! its last pass asked for that. A failing one backs off by itself and delays nobody.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cache::Key;

/// Shortest time between two passes over one Database, so that a burst of events makes one pass.
const COALESCE: Duration = Duration::from_millis(50);

/// Keys that wait, by time.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    due: HashMap<Key, Instant>,
    order: BTreeSet<(Instant, Key)>,
    working: BTreeSet<Key>,
    touched_while_working: BTreeSet<Key>,
    failures: HashMap<Key, u32>,
}

impl State {
    fn schedule(&mut self, key: &Key, at: Instant) {
        match self.due.get(key) {
            Some(present) if *present <= at => {}
            present => {
                if let Some(present) = present {
                    self.order.remove(&(*present, key.clone()));
                }
                self.due.insert(key.clone(), at);
                self.order.insert((at, key.clone()));
            }
        }
    }
}

impl Queue {
    /// Something touched `key`: it is worked on soon.
    pub fn touch(&self, key: Key) {
        let mut state = self.lock();
        if state.working.contains(&key) {
            state.touched_while_working.insert(key);
        } else {
            state.schedule(&key, Instant::now() + COALESCE);
            self.news.notify_one();
        }
    }

    /// Waits for the next key that is due and marks it as worked on.
    pub async fn next(&self) -> Key {
        loop {
            let wait = {
                let mut state = self.lock();
                let first = state.order.first().cloned();
                match first {
                    Some((at, key)) if at <= Instant::now() => {
                        state.order.remove(&(at, key.clone()));
                        state.due.remove(&key);
                        state.working.insert(key.clone());
                        if !state.order.is_empty() {
                            self.news.notify_one();
                        }
                        return key;
                    }
                    Some((at, _)) => at,
                    None => Instant::now() + Duration::from_hours(1),
                }
            };
            tokio::select! {
                () = tokio::time::sleep_until(wait) => {}
                () = self.news.notified() => {}
            }
        }
    }

    /// The pass over `key` ended; it asks to be called again after `again`, or failed.
    pub fn done(&self, key: &Key, again: Result<Option<Duration>, ()>) {
        let mut state = self.lock();
        state.working.remove(key);
        let again = if let Ok(again) = again {
            state.failures.remove(key);
            again
        } else {
            let failures = state.failures.entry(key.clone()).or_insert(0);
            *failures = (*failures + 1).min(7);
            Some(Duration::from_millis(500 << *failures))
        };
        if state.touched_while_working.remove(key) {
            state.schedule(key, Instant::now() + COALESCE);
        } else if let Some(again) = again {
            state.schedule(key, Instant::now() + again);
        }
        drop(state);
        self.news.notify_one();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key { namespace: "n".into(), name: name.into() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_touched_while_it_is_worked_on_comes_again() {
        let queue = Queue::default();
        queue.touch(key("a"));
        queue.touch(key("a"));
        assert_eq!(queue.next().await, key("a"));
        queue.touch(key("a"));
        let other = tokio::time::timeout(Duration::from_secs(1), queue.next()).await;
        assert!(other.is_err(), "one worker per key");
        queue.done(&key("a"), Ok(None));
        assert_eq!(queue.next().await, key("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_key_backs_off_and_delays_nobody() {
        let queue = Queue::default();
        queue.touch(key("bad"));
        assert_eq!(queue.next().await, key("bad"));
        queue.done(&key("bad"), Err(()));
        queue.touch(key("good"));
        assert_eq!(queue.next().await, key("good"));
        let start = Instant::now();
        assert_eq!(queue.next().await, key("bad"));
        assert!(start.elapsed() >= Duration::from_millis(900));
    }
}
