//! Structured log: JSON lines on standard error.
//!
//! Invariant: logging never blocks. A line is written only when the reader has room for it, else it is dropped and
//! counted; a stuck log collector must not look like a hung agent.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use serde_json::{Map, Value};

/// Longest line that a pipe takes at once, so that lines of several processes do not mix.
pub const ATOMIC_BYTES: usize = 4096;

static DROPPED: AtomicU64 = AtomicU64::new(0);
static OWN: OnceLock<Option<File>> = OnceLock::new();

/// How much a line matters.
#[derive(Clone, Copy, Debug)]
pub enum Level {
    /// Normal events.
    Info,
    /// Something that a person may want to look at.
    Warn,
    /// Something that keeps the member from working.
    Error,
}

/// Writes an event of the agent with its fields.
pub fn event(level: Level, message: &str, fields: &[(&str, &dyn std::fmt::Display)]) {
    let level = match level {
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
    };
    let mut record = Map::new();
    record.insert("level".into(), level.into());
    record.insert("message".into(), message.into());
    for (name, value) in fields {
        record.insert((*name).to_owned(), value.to_string().into());
    }
    emit(&line("agent", record));
}

/// Formats a line: time and source first, then the given fields.
pub fn line(source: &str, fields: Map<String, Value>) -> String {
    let mut record = Map::new();
    record.insert("time".into(), timestamp().into());
    record.insert("source".into(), source.into());
    record.extend(fields);
    let mut text = Value::Object(record).to_string();
    text.push('\n');
    text
}

/// Writes a line if standard error has room for it.
pub fn emit(text: &str) {
    let dropped = DROPPED.load(Ordering::Relaxed);
    if dropped > 0 {
        let mut fields = Map::new();
        fields.insert("message".into(), format!("{dropped} log lines were dropped: the log reader is too slow").into());
        if write(line("agent", fields).as_bytes()).is_ok() {
            DROPPED.fetch_sub(dropped, Ordering::Relaxed);
        }
    }
    for piece in text.as_bytes().chunks(ATOMIC_BYTES) {
        if write(piece).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
            return;
        }
    }
}

/// Writes at most [`ATOMIC_BYTES`] to standard error without ever blocking: all of it, or `WouldBlock`.
pub fn write(piece: &[u8]) -> io::Result<usize> {
    let piece = &piece[..piece.len().min(ATOMIC_BYTES)];
    if let Some(own) = OWN.get_or_init(open_own) {
        return (&mut &*own).write(piece);
    }
    let stderr = io::stderr();
    let mut poll = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    match nix::poll::poll(&mut poll, PollTimeout::ZERO) {
        Ok(1..) => (&stderr).write(piece),
        _ => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// A pipe opened anew, so that non-blocking holds for this process only; the open file behind descriptor 2 is shared
/// with every other process of the container. `None`: no pipe, or not allowed to.
fn open_own() -> Option<File> {
    use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
    let path = "/proc/self/fd/2";
    std::fs::metadata(path).ok().filter(|metadata| metadata.file_type().is_fifo())?;
    File::options().write(true).custom_flags(nix::libc::O_NONBLOCK).open(path).ok()
}

/// Present time, RFC 3339 with milliseconds.
pub fn timestamp() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format_time(now.as_secs(), now.subsec_millis())
}

/// Present time in Unix seconds.
pub fn unix_seconds() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}

fn format_time(seconds: u64, millis: u32) -> String {
    // Days to a date of the proleptic Gregorian calendar, counted in years that begin in March.
    let days = seconds / 86_400 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(format_time(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(format_time(951_782_400, 7), "2000-02-29T00:00:00.007Z");
        assert_eq!(format_time(1_795_590_970, 999), "2026-11-25T07:16:10.999Z");
    }
}
