//! What was found: a table for people, `results.json` for machines, `JUnit` XML for what runs tests.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// The promise was kept.
    Passed,
    /// It was broken.
    Failed,
    /// The image does not claim it.
    NotClaimed,
    /// It could not be tested; no pass.
    NotTested,
}

/// One check's outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// Level of the check, 0 to 5.
    pub level: u8,
    /// Its name.
    pub check: String,
    /// How it ended.
    pub verdict: Verdict,
    /// Seconds that it took.
    pub seconds: f64,
    /// Why it failed, or is not claimed or tested.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// A run's results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Results {
    /// Version of the standard.
    pub standard: String,
    /// Version of the kit.
    pub kit: String,
    /// The image, as it was named, and its id.
    pub image: String,
    /// Digest or id of the image.
    pub image_id: String,
    /// Engine of the manifest.
    pub engine: String,
    /// Engine's version.
    pub version: String,
    /// Whether a real engine was in the image, or a stand-in for it (a label of the image says so). Only `engine` is verified.
    pub tested_with: String,
    /// When, in UTC.
    pub at: String,
    /// Seconds of the whole run.
    pub seconds: f64,
    /// Most memory that the members used together, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The checks that were chosen; a level is judged only when this is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<String>,
    /// The checks, in the order in which they ran.
    pub outcomes: Vec<Outcome>,
}

/// Writes a file of a folder, which is made when it is not there.
fn put(folder: &Path, name: &str, text: &str) -> Result<()> {
    let (path, new) = (folder.join(name), folder.join(format!("{name}.new")));
    let write = || {
        std::fs::create_dir_all(folder)?;
        std::fs::write(&new, text)?;
        std::fs::rename(&new, &path)
    };
    write().with_context(|| {
        drop(std::fs::remove_file(&new));
        format!("cannot write {}: make room, or choose another folder with --results", path.display())
    })
}

/// Fails when a folder cannot take results and logs: better before the run than after it.
pub fn check_folder(folder: &Path) -> Result<()> {
    put(folder, "probe", &"0".repeat(1 << 20))?;
    Ok(std::fs::remove_file(folder.join("probe"))?)
}

impl Results {
    /// Number of outcomes with this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.verdict == verdict).count()
    }

    /// Whether everything claimed was tested and holds.
    pub fn is_good(&self) -> bool {
        self.count(Verdict::Failed) + self.count(Verdict::NotTested) == 0 && self.count(Verdict::Passed) > 0
    }

    /// The highest level of which, as of all below, something passed and nothing failed or was left untested.
    pub fn level(&self) -> Option<u8> {
        let holds = |level: u8| {
            let of = |verdict| self.outcomes.iter().any(|one| one.level == level && one.verdict == verdict);
            of(Verdict::Passed) && !of(Verdict::Failed) && !of(Verdict::NotTested)
        };
        (0..=5).take_while(|level| holds(*level)).last()
    }

    /// One line at the end of a run.
    pub fn summary(&self) -> String {
        let level = match (self.only.is_empty(), self.level()) {
            (true, Some(level)) => format!("keeps level {level}"),
            (true, None) => "keeps no level".to_owned(),
            (false, _) => "in chosen checks, which prove no level,".to_owned(),
        };
        format!(
            "{} {} {level} of standard {}: {} passed, {} failed, {} not claimed, {} not tested in {:.0} s",
            self.engine,
            self.version,
            self.standard,
            self.count(Verdict::Passed),
            self.count(Verdict::Failed),
            self.count(Verdict::NotClaimed),
            self.count(Verdict::NotTested),
            self.seconds,
        )
    }

    /// Writes `results.json` and `junit.xml` into a folder, each as a whole or not at all.
    pub fn write(&self, folder: &Path) -> Result<()> {
        put(folder, "results.json", &(serde_json::to_string_pretty(self)? + "\n"))?;
        put(folder, "junit.xml", &self.junit())
    }

    fn junit(&self) -> String {
        let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let skipped = self.count(Verdict::NotClaimed) + self.count(Verdict::NotTested);
        let _ = writeln!(
            text,
            "<testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" skipped=\"{skipped}\" time=\"{:.1}\">",
            escape(&format!("{} {}", self.engine, self.version)),
            self.outcomes.len(),
            self.count(Verdict::Failed),
            self.seconds,
        );
        for one in &self.outcomes {
            let (check, reason) = (escape(&one.check), escape(&one.reason));
            let _ =
                write!(text, "  <testcase classname=\"L{}\" name=\"{check}\" time=\"{:.1}\"", one.level, one.seconds);
            let _ = match one.verdict {
                Verdict::Passed => writeln!(text, "/>"),
                Verdict::Failed => writeln!(text, "><failure message=\"{reason}\"/></testcase>"),
                Verdict::NotClaimed | Verdict::NotTested => {
                    writeln!(text, "><skipped message=\"{reason}\"/></testcase>")
                }
            };
        }
        text.push_str("</testsuite>\n");
        text
    }
}

/// Prints a line. Who reads only the first ones ends no run: what it made must be removed.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// A line of the table.
pub fn line(outcome: &Outcome) -> String {
    let verdict = match outcome.verdict {
        Verdict::Passed => "ok",
        Verdict::Failed => "FAILED",
        Verdict::NotClaimed => "not claimed",
        Verdict::NotTested => "not tested",
    };
    let reason = if outcome.reason.is_empty() { String::new() } else { format!("\n      {}", outcome.reason) };
    format!("  L{} {:<44} {verdict:<11} {:>6.1} s{reason}", outcome.level, outcome.check, outcome.seconds)
}

fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' => escaped.push_str("&#10;"),
            control if control.is_control() => escaped.push('?'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(level: u8, verdict: Verdict) -> Outcome {
        Outcome { level, check: "c".into(), verdict, seconds: 1.0, reason: "a<b & \"c\"".into() }
    }

    fn results(outcomes: Vec<Outcome>) -> Results {
        Results {
            standard: "0.1".into(),
            kit: "1".into(),
            image: "i".into(),
            image_id: "sha256:0".into(),
            engine: "e".into(),
            version: "1".into(),
            tested_with: "engine".into(),
            at: String::new(),
            seconds: 2.0,
            memory_bytes: None,
            only: vec![],
            outcomes,
        }
    }

    #[test]
    fn a_level_counts_only_when_all_below_hold_and_something_was_proven() {
        use Verdict::{Failed, NotClaimed, NotTested, Passed};
        let level = |list: &[(u8, Verdict)]| results(list.iter().map(|one| outcome(one.0, one.1)).collect()).level();
        assert_eq!(level(&[(0, Passed), (1, Passed), (2, Failed)]), Some(1));
        assert_eq!(level(&[(0, Passed), (1, NotClaimed), (2, Passed)]), Some(0));
        assert_eq!(level(&[(0, Passed), (1, Passed), (1, NotTested)]), Some(0));
        assert_eq!(level(&[(0, Failed), (1, Passed)]), None);
        assert_eq!(level(&[(0, Passed), (1, Passed), (2, Passed), (2, NotClaimed), (3, NotClaimed)]), Some(2));
    }

    #[test]
    fn results_are_read_back_and_xml_is_escaped() {
        let folder = tempfile::tempdir().unwrap();
        let written = results(vec![outcome(0, Verdict::Passed), outcome(1, Verdict::Failed)]);
        written.write(folder.path()).unwrap();
        let read = std::fs::read(folder.path().join("results.json")).unwrap();
        assert_eq!(serde_json::from_slice::<Results>(&read).unwrap(), written);
        let xml = std::fs::read_to_string(folder.path().join("junit.xml")).unwrap();
        assert!(xml.contains("failure message=\"a&lt;b &amp; &quot;c&quot;\""), "{xml}");
    }
}
