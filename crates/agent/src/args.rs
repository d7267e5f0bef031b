//! The command line: parsed by hand, because the verb process starts several times a minute and must start fast.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use backlot_standard::layout;

use crate::paths::Paths;

/// Printed beside an error.
pub const USAGE: &str = "usage: backlot-agent install DIRECTORY | keeper | inspect | call VERB | version
  install DIRECTORY  copies this binary to DIRECTORY/backlot-agent
  keeper             runs as the first process of a member's container
  inspect            serves the image's manifest to the operator
  call VERB [--changing] [--kill-after-ms N] [KEY=VALUE...]
                     calls a verb of this member once, as the agent would, and prints its answer; KEY is a
                     dotted path into the request, VALUE is JSON or else a text";

/// What the process is to do.
#[derive(Debug)]
pub enum Command {
    /// First process of the container.
    Keeper(Settings),
    /// Child of the keeper.
    Pilot(Settings),
    /// Serves the manifest only.
    Inspect(Settings),
    /// Copies the binary into a directory.
    Install(PathBuf),
    /// Runs one verb and ends with everything it started.
    RunVerb(VerbArguments),
    /// Calls one verb by hand.
    Call(CallArguments),
    /// Becomes the engine.
    Launch(Vec<OsString>),
    /// Prints the version.
    Version,
}

/// Settings that keeper and pilot share; the defaults are the contract, the flags exist for tests.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where things lie.
    pub paths: Paths,
    /// Address of the API.
    pub listen: SocketAddr,
    /// Silence after which keeper and pilot take each other for hung.
    pub silence: Duration,
}

impl Settings {
    /// The settings as arguments of a child process.
    pub fn to_arguments(&self) -> Vec<OsString> {
        let mut arguments = vec!["--listen".into(), self.listen.to_string().into()];
        arguments.extend(["--silence-ms".into(), self.silence.as_millis().to_string().into()]);
        if let Some(root) = self.paths.root() {
            arguments.extend(["--root".into(), root.into()]);
        }
        arguments
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            paths: Paths::default(),
            listen: SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, layout::AGENT_PORT)),
            silence: Duration::from_secs(3),
        }
    }
}

/// Arguments of the process that runs one verb.
#[derive(Debug)]
pub struct VerbArguments {
    /// Name of the verb, for the log.
    pub verb: String,
    /// The executable.
    pub program: PathBuf,
    /// Time until everything is killed.
    pub deadline: Duration,
    /// The result file; the call ends when it grows beyond the standard's limit.
    pub result: PathBuf,
    /// File to write how the call ended.
    pub outcome: PathBuf,
    /// Largest file that the verb may write; 0 = no limit.
    pub file_bytes: u64,
}

/// Arguments of a call by hand.
#[derive(Debug, Default)]
pub struct CallArguments {
    /// Where things lie.
    pub paths: Paths,
    /// Name of the verb.
    pub verb: String,
    /// The verb may change something.
    pub changing: bool,
    /// Kill it after this time, with everything that it started.
    pub kill_after: Option<Duration>,
    /// Changes of the request: dotted path and value.
    pub set: Vec<(String, serde_json::Value)>,
}

/// Why the arguments are refused.
#[derive(Debug, thiserror::Error)]
pub enum ArgumentError {
    /// No such command.
    #[error("unknown command `{0}`")]
    Command(String),
    /// No such flag, or one without its value.
    #[error("unknown flag `{0}`, or its value is missing")]
    Flag(String),
    /// A value that does not parse.
    #[error("`{value}` is no value of {flag}")]
    Value {
        /// The flag.
        flag: String,
        /// Its value.
        value: String,
    },
    /// An argument that the command needs.
    #[error("{0} is missing")]
    Missing(&'static str),
}

/// Parses the arguments after the program's name.
pub fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Command, ArgumentError> {
    let command = arguments.next().ok_or(ArgumentError::Missing("a command"))?;
    match command.to_string_lossy().as_ref() {
        "keeper" => Ok(Command::Keeper(settings(arguments)?)),
        "pilot" => Ok(Command::Pilot(settings(arguments)?)),
        "inspect" => Ok(Command::Inspect(settings(arguments)?)),
        "install" => Ok(Command::Install(arguments.next().ok_or(ArgumentError::Missing("DIRECTORY"))?.into())),
        "run-verb" => Ok(Command::RunVerb(verb_arguments(arguments)?)),
        "call" => Ok(Command::Call(call_arguments(arguments)?)),
        "launch" => Ok(Command::Launch(arguments.collect())),
        "version" | "--version" => Ok(Command::Version),
        other => Err(ArgumentError::Command(other.to_owned())),
    }
}

fn settings(mut arguments: impl Iterator<Item = OsString>) -> Result<Settings, ArgumentError> {
    let mut settings = Settings::default();
    while let Some(flag) = arguments.next() {
        let flag = flag.to_string_lossy().into_owned();
        let value = arguments.next().ok_or_else(|| ArgumentError::Flag(flag.clone()))?;
        match flag.as_str() {
            "--root" => settings.paths = Paths::below(PathBuf::from(value)),
            "--listen" => settings.listen = number(&flag, &value)?,
            "--silence-ms" => settings.silence = Duration::from_millis(number(&flag, &value)?),
            _ => return Err(ArgumentError::Flag(flag)),
        }
    }
    Ok(settings)
}

fn verb_arguments(mut arguments: impl Iterator<Item = OsString>) -> Result<VerbArguments, ArgumentError> {
    let mut next = |name| arguments.next().ok_or(ArgumentError::Missing(name));
    Ok(VerbArguments {
        verb: next("VERB")?.to_string_lossy().into_owned(),
        program: next("PROGRAM")?.into(),
        deadline: Duration::from_millis(number("DEADLINE", &next("DEADLINE")?)?),
        result: next("RESULT")?.into(),
        outcome: next("OUTCOME")?.into(),
        file_bytes: number("FILE_BYTES", &next("FILE_BYTES")?)?,
    })
}

fn call_arguments(mut arguments: impl Iterator<Item = OsString>) -> Result<CallArguments, ArgumentError> {
    let verb = arguments.next().ok_or(ArgumentError::Missing("VERB"))?.to_string_lossy().into_owned();
    let mut call = CallArguments { verb, ..CallArguments::default() };
    while let Some(argument) = arguments.next() {
        let argument = argument.to_string_lossy().into_owned();
        let mut value = || arguments.next().ok_or_else(|| ArgumentError::Flag(argument.clone()));
        match argument.as_str() {
            "--changing" => call.changing = true,
            "--kill-after-ms" => call.kill_after = Some(Duration::from_millis(number(&argument, &value()?)?)),
            "--root" => call.paths = Paths::below(value()?.into()),
            _ => {
                let (path, value) = argument.split_once('=').ok_or_else(|| ArgumentError::Flag(argument.clone()))?;
                let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
                call.set.push((path.to_owned(), value));
            }
        }
    }
    Ok(call)
}

fn number<T: std::str::FromStr>(flag: &str, value: &OsString) -> Result<T, ArgumentError> {
    let value = value.to_string_lossy();
    value.parse().map_err(|_| ArgumentError::Value { flag: flag.to_owned(), value: value.into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Command, ArgumentError> {
        parse(text.split_whitespace().map(OsString::from))
    }

    #[test]
    fn settings_survive_the_way_to_a_child() {
        let Ok(Command::Keeper(given)) = of("keeper --listen 127.0.0.1:9 --silence-ms 700 --root /t") else { panic!() };
        let again = settings(given.to_arguments().into_iter()).unwrap();
        assert_eq!(again.listen, "127.0.0.1:9".parse().unwrap());
        assert_eq!(again.silence, Duration::from_millis(700));
        assert_eq!(again.paths.root(), given.paths.root());
    }

    #[test]
    fn wrong_arguments_are_named() {
        assert_eq!(of("keeper --listen here").unwrap_err().to_string(), "`here` is no value of --listen");
        assert_eq!(of("fly").unwrap_err().to_string(), "unknown command `fly`");
        assert_eq!(of("install").unwrap_err().to_string(), "DIRECTORY is missing");
        assert_eq!(of("keeper --root").unwrap_err().to_string(), "unknown flag `--root`, or its value is missing");
    }
}
