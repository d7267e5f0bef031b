//! Settings of an engine: their schema in the manifest, and the check of a user's values against it (SPEC §8).
//!
//! A setting is a flat key with a scalar value. The schema is a subset of JSON Schema, so that an editor can use it as one.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// When a changed value is taken up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Apply {
    /// By `reconfigure`, while the engine runs.
    Live,
    /// At the engine's next start; the operator restarts members one at a time.
    #[default]
    Restart,
    /// Only when the cluster is founded; a later change is refused.
    Immutable,
}

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SettingType {
    /// Text.
    String,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A size with an optional unit (`64MB`, `64Mi`, `65536`); limits are in bytes.
    Bytes,
    /// A time with a unit (`500ms`, `30s`, `5min`, `1h`, `2d`); limits are in milliseconds.
    Duration,
}

/// One setting that users may change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Setting {
    /// Type of the value.
    #[serde(rename = "type")]
    pub kind: SettingType,
    /// One sentence for people.
    #[serde(default)]
    pub description: String,
    /// When a changed value is taken up.
    #[serde(default)]
    pub apply: Apply,
    /// The image's value when the user gives none, for people; `render` decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// A sensible value that is not the default, as a user would write it: for documentation, and for tests that change it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub example: Option<String>,
    /// Smallest value: a number, bytes or milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<f64>,
    /// Largest value: a number, bytes or milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum: Option<f64>,
    /// The only values allowed.
    #[serde(default, rename = "enum", skip_serializing_if = "Vec::is_empty")]
    pub allowed: Vec<String>,
    /// The roles to change first when the value is raised: some engines refuse a follower with less than its leader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raise_first_on: Option<RoleOrder>,
}

/// Which role comes first in an ordered change; the reverse order holds when the value is lowered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RoleOrder {
    /// Followers, then the leader.
    Followers,
    /// The leader, then followers.
    Leader,
}

/// Why a value is refused; the text names the value and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// The manifest has no such key.
    #[error("unknown setting{}", nearest.as_ref().map(|near| format!(". Did you mean {near}?")).unwrap_or_default())]
    Unknown {
        /// The known key with the smallest edit distance, when it is near.
        nearest: Option<String>,
    },
    /// The value does not parse.
    #[error("`{value}` is not {expected}")]
    Type {
        /// The value as given.
        value: String,
        /// What would be right, e.g. `a whole number`.
        expected: &'static str,
    },
    /// The value is out of range.
    #[error("`{value}` is {relation} {limit}")]
    Range {
        /// The value as given.
        value: String,
        /// `below the minimum` or `above the maximum`.
        relation: &'static str,
        /// The limit in the setting's unit.
        limit: String,
    },
    /// The value is not one of the allowed ones.
    #[error("`{value}` is not one of {}", allowed.join(", "))]
    NotAllowed {
        /// The value as given.
        value: String,
        /// The allowed values.
        allowed: Vec<String>,
    },
}

impl Setting {
    /// Checks one value as the user wrote it.
    pub fn check(&self, value: &str) -> Result<(), SettingError> {
        if !self.allowed.is_empty() && !self.allowed.iter().any(|allowed| allowed == value) {
            return Err(SettingError::NotAllowed { value: value.to_owned(), allowed: self.allowed.clone() });
        }
        let wrong = |expected| Err(SettingError::Type { value: value.to_owned(), expected });
        let number = match self.kind {
            SettingType::String if value.contains(['\n', '\r', '\0']) => return wrong("text on one line"),
            SettingType::String => None,
            SettingType::Boolean if matches!(value, "true" | "false") => None,
            SettingType::Boolean => return wrong("true or false"),
            SettingType::Integer => match value.parse::<i64>() {
                #[expect(clippy::cast_precision_loss, reason = "only compared with limits, which are far below 2^52")]
                Ok(number) => Some(number as f64),
                Err(_) => return wrong("a whole number"),
            },
            SettingType::Number => match value.parse::<f64>() {
                Ok(number) if number.is_finite() => Some(number),
                _ => return wrong("a number"),
            },
            SettingType::Bytes => match parse_bytes(value) {
                Some(number) => Some(number),
                None => return wrong("a size such as 64MB, 1Gi or 65536"),
            },
            SettingType::Duration => match parse_milliseconds(value) {
                Some(number) => Some(number),
                None => return wrong("a time such as 500ms, 30s, 5min or 1h"),
            },
        };
        match (number, self.minimum, self.maximum) {
            (Some(number), Some(minimum), _) if number < minimum => Err(SettingError::Range {
                value: value.to_owned(),
                relation: "below the minimum",
                limit: minimum.to_string(),
            }),
            (Some(number), _, Some(maximum)) if number > maximum => Err(SettingError::Range {
                value: value.to_owned(),
                relation: "above the maximum",
                limit: maximum.to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// Whether a change of this setting from `before` to `after` lowers it; a value that was not given is the default.
    /// `None` when the two do not compare.
    pub fn lowers(&self, before: Option<&str>, after: Option<&str>) -> Option<bool> {
        let default =
            self.default.as_ref().map(|value| value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned));
        let number = |text: Option<&str>| {
            let text = text.map(ToOwned::to_owned).or_else(|| default.clone())?;
            match self.kind {
                SettingType::Bytes => parse_bytes(&text),
                SettingType::Duration => parse_milliseconds(&text),
                SettingType::Integer | SettingType::Number => text.parse().ok(),
                SettingType::String | SettingType::Boolean => None,
            }
        };
        Some(number(after)? < number(before)?)
    }
}

/// Checks `values` against `settings`; returns every refused key with its reason.
pub fn check_all(
    settings: &BTreeMap<String, Setting>,
    values: &BTreeMap<String, String>,
) -> Vec<(String, SettingError)> {
    values
        .iter()
        .filter_map(|(key, value)| match settings.get(key) {
            Some(setting) => setting.check(value).err().map(|error| (key.clone(), error)),
            None => Some((key.clone(), SettingError::Unknown { nearest: nearest(key, settings.keys()) })),
        })
        .collect()
}

/// The candidate nearest to `word` by edit distance, if at most a third of the word differs.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a String>) -> Option<String> {
    candidates
        .map(|candidate| (edit_distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= (word.len() / 3).max(1))
        .min()
        .map(|(_, candidate)| candidate.clone())
}

fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let substitution = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = substitution.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

fn split_number(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    Some((number, text[end..].trim()))
}

/// Parses `64MB`, `64Mi`, `1k` or plain bytes. Units are binary in either spelling, as the engines read them.
pub fn parse_bytes(text: &str) -> Option<f64> {
    let (number, unit) = split_number(text)?;
    let factor = match unit.to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" => 1.0,
        "k" => 1024.0,
        "m" => 1024.0 * 1024.0,
        "g" => 1024.0 * 1024.0 * 1024.0,
        "t" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    Some(number * factor)
}

/// Parses `500ms`, `30s`, `5min`, `1h`, `2d` to milliseconds; a bare `0` is zero.
pub fn parse_milliseconds(text: &str) -> Option<f64> {
    let (number, unit) = split_number(text)?;
    let factor = match unit {
        "" if number == 0.0 => 1.0,
        "ms" => 1.0,
        "s" => 1000.0,
        "min" | "m" => 60_000.0,
        "h" => 3_600_000.0,
        "d" => 86_400_000.0,
        _ => return None,
    };
    Some(number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(kind: SettingType, minimum: Option<f64>, maximum: Option<f64>) -> Setting {
        Setting {
            kind,
            description: String::new(),
            apply: Apply::Live,
            default: None,
            example: None,
            minimum,
            maximum,
            allowed: vec![],
            raise_first_on: None,
        }
    }

    #[test]
    fn values_are_checked_by_type_and_range() {
        assert_eq!(setting(SettingType::Integer, Some(1.0), Some(10.0)).check("5"), Ok(()));
        assert_eq!(
            setting(SettingType::Integer, Some(1.0), None).check("0").unwrap_err().to_string(),
            "`0` is below the minimum 1"
        );
        assert_eq!(
            setting(SettingType::Integer, None, None).check("many").unwrap_err().to_string(),
            "`many` is not a whole number"
        );
        assert_eq!(setting(SettingType::Bytes, Some(1024.0), None).check("64MB"), Ok(()));
        assert!(setting(SettingType::Bytes, None, None).check("64 quires").is_err());
        assert_eq!(setting(SettingType::Duration, Some(1.0), None).check("30s"), Ok(()));
        assert!(setting(SettingType::Duration, None, None).check("30").is_err());
        assert!(setting(SettingType::Boolean, None, None).check("yes").is_err());
        assert!(setting(SettingType::String, None, None).check("two\nlines").is_err());
    }

    #[test]
    fn an_unknown_key_names_its_nearest_neighbour() {
        let settings = BTreeMap::from([("max_connections".to_owned(), setting(SettingType::Integer, None, None))]);
        let refused = check_all(&settings, &BTreeMap::from([("max_conections".to_owned(), "1".to_owned())]));
        assert_eq!(refused[0].1.to_string(), "unknown setting. Did you mean max_connections?");
        let refused = check_all(&settings, &BTreeMap::from([("colour".to_owned(), "1".to_owned())]));
        assert_eq!(refused[0].1.to_string(), "unknown setting");
    }

    #[test]
    fn a_change_is_compared_in_the_settings_own_unit_and_with_its_default() {
        let bytes = setting(SettingType::Bytes, None, None);
        assert_eq!(bytes.lowers(Some("1GB"), Some("900MB")), Some(true));
        assert_eq!(bytes.lowers(Some("1GB"), Some("1024MB")), Some(false));
        assert_eq!(bytes.lowers(None, Some("1MB")), None);
        let number = Setting { default: Some(Value::from(100)), ..setting(SettingType::Integer, None, None) };
        assert_eq!(number.lowers(None, Some("77")), Some(true));
        assert_eq!(number.lowers(Some("77"), None), Some(false));
        assert_eq!(setting(SettingType::String, None, None).lowers(Some("b"), Some("a")), None);
    }
}
