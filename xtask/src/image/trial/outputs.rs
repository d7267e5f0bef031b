//! Checks a verb's output against the standard's type for that verb.
//!
//! Invariant: a verb without a type of its own may answer anything that is a result.

use anyhow::{Context, Result};
use backlot_standard::result::{
    CanDisruptOutput, HealthOutput, JoinOutput, MembershipOutput, PrepareOutput, ReconfigureOutput, RenderOutput,
    RoleOutput,
};
use backlot_standard::verb::Verb;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Fails unless `output` is what `verb` has to answer when it is done.
pub fn check(verb: Verb, output: Option<&Value>) -> Result<()> {
    match verb {
        Verb::Render => required::<RenderOutput>(output),
        Verb::Prepare => required::<PrepareOutput>(output),
        Verb::Role => required::<RoleOutput>(output),
        Verb::Health => required::<HealthOutput>(output),
        Verb::Membership => required::<MembershipOutput>(output),
        Verb::CanDisrupt => required::<CanDisruptOutput>(output),
        Verb::Reconfigure => required::<ReconfigureOutput>(output),
        Verb::Found | Verb::Join => output.map_or(Ok(()), parse::<JoinOutput>),
        _ => Ok(()),
    }
    .with_context(|| format!("the output of {} is not the standard's", verb.name()))
}

/// Parses a verb's output.
pub fn required<T: DeserializeOwned>(output: Option<&Value>) -> Result<()> {
    parse::<T>(output.context("there is no output")?)
}

fn parse<T: DeserializeOwned>(output: &Value) -> Result<()> {
    serde_json::from_value::<T>(output.clone()).map(drop).with_context(|| output.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_output_has_its_verbs_type() {
        assert!(check(Verb::Role, Some(&json!({"role": "leader", "writable": true}))).is_ok());
        assert!(check(Verb::Role, Some(&json!({"role": "boss", "writable": true}))).is_err());
        assert!(check(Verb::Role, None).is_err());
        assert!(check(Verb::Join, None).is_ok());
        assert!(check(Verb::Join, Some(&json!({"engineId": 7}))).is_err());
        assert!(check(Verb::PreStop, Some(&json!("anything"))).is_ok());
    }
}
