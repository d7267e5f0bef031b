//! Label and field selectors.
//!
//! Invariant: a selector that cannot be parsed, or names a field that the resource does not offer, is refused, never ignored.

use serde_json::Value;

use super::error::Refusal;
use super::resource::ResourceType;

/// What a list or watch selects.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<(String, bool, String)>,
}

#[derive(Clone, Debug)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl Selector {
    /// Parses the query parameters `labelSelector` and `fieldSelector`.
    pub(crate) fn parse(resource: &ResourceType, labels: &str, fields: &str) -> Result<Self, Refusal> {
        let labels = split_outside_parentheses(labels).into_iter().map(parse_label).collect::<Result<_, _>>()?;
        let fields = fields
            .split(',')
            .filter(|term| !term.trim().is_empty())
            .map(|term| parse_field(resource, term.trim()))
            .collect::<Result<_, _>>()?;
        Ok(Self { labels, fields })
    }

    /// Whether an object is selected.
    pub(crate) fn matches(&self, object: &Value) -> bool {
        let label = |name: &str| object["metadata"]["labels"][name].as_str();
        let labels = self.labels.iter().all(|requirement| match requirement {
            Requirement::In(name, values) => label(name).is_some_and(|value| values.iter().any(|one| one == value)),
            Requirement::NotIn(name, values) => label(name).is_none_or(|value| values.iter().all(|one| one != value)),
            Requirement::Exists(name) => label(name).is_some(),
            Requirement::Absent(name) => label(name).is_none(),
        });
        labels && self.fields.iter().all(|(path, equal, value)| (field(object, path) == *value) == *equal)
    }
}

/// A label selector object (`matchLabels`, `matchExpressions`) applied to labels; an empty one selects everything.
pub(crate) fn label_selector_matches(selector: &Value, labels: &Value) -> bool {
    let wanted = selector["matchLabels"].as_object().into_iter().flatten();
    let expressions = selector["matchExpressions"].as_array().into_iter().flatten();
    wanted.into_iter().all(|(name, value)| labels[name] == *value)
        && expressions.into_iter().all(|expression| {
            let label = expression["key"].as_str().map_or(&Value::Null, |key| &labels[key]);
            let listed = expression["values"].as_array().is_some_and(|values| values.contains(label));
            match expression["operator"].as_str() {
                Some("In") => listed,
                Some("NotIn") => !listed,
                Some("Exists") => !label.is_null(),
                Some("DoesNotExist") => label.is_null(),
                _ => false,
            }
        })
}

fn field(object: &Value, path: &str) -> String {
    let value = path.split('.').fold(object, |value, name| &value[name]);
    match value {
        Value::String(text) => text.clone(),
        Value::Null if path == "spec.unschedulable" => "false".to_owned(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn parse_field(resource: &ResourceType, term: &str) -> Result<(String, bool, String), Refusal> {
    let parts = term.split_once("!=").map(|parts| (parts, false));
    let parts = parts.or_else(|| term.split_once("==").map(|parts| (parts, true)));
    let Some(((path, value), equal)) = parts.or_else(|| term.split_once('=').map(|parts| (parts, true))) else {
        return Err(Refusal::bad_request(format!("invalid selector: '{term}'; can't understand '{term}'")));
    };
    let offered = path == "metadata.name"
        || (path == "metadata.namespace" && resource.namespaced)
        || resource.selectable.iter().any(|one| one == path);
    if offered {
        Ok((path.to_owned(), equal, value.to_owned()))
    } else {
        Err(Refusal::bad_request(format!("field label not supported: {path}")))
    }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut depth = 0_i32;
    let parts = text.split(|c: char| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|term| !term.is_empty()).collect()
}

fn parse_label(term: &str) -> Result<Requirement, Refusal> {
    let own = |text: &str| text.trim().to_owned();
    if let Some((name, values)) = term.split_once("!=") {
        return Ok(Requirement::NotIn(own(name), vec![own(values)]));
    }
    if let Some((name, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        return Ok(Requirement::In(own(name), vec![own(value)]));
    }
    if let Some((left, values)) = term.strip_suffix(')').and_then(|term| term.split_once('(')) {
        let values = values.split(',').map(own).collect();
        return match left.split_whitespace().collect::<Vec<_>>().as_slice() {
            [name, "in"] => Ok(Requirement::In(own(name), values)),
            [name, "notin"] => Ok(Requirement::NotIn(own(name), values)),
            _ => Err(Refusal::bad_request(format!("unable to parse requirement: {term}"))),
        };
    }
    if term.contains(char::is_whitespace) {
        return Err(Refusal::bad_request(format!("unable to parse requirement: {term}")));
    }
    Ok(match term.strip_prefix('!') {
        Some(name) => Requirement::Absent(own(name)),
        None => Requirement::Exists(own(term)),
    })
}
