//! Names, labels and annotations: their syntax and limits.

use serde_json::{Value, json};

use crate::api_server::error::Cause;
use crate::api_server::resource::ResourceType;

const MAX_ANNOTATION_BYTES: usize = 256 * 1024;

pub(super) fn check(resource: &ResourceType, object: &Value) -> Vec<Cause> {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default();
    let mut causes = vec![];
    let (fits, rule) = match resource.kind.as_str() {
        "Service" => {
            (is_label(name, true), "a DNS-1035 label must consist of lower case alphanumeric characters or '-'")
        }
        "Namespace" => (
            is_label(name, false),
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-'",
        ),
        "Role" | "RoleBinding" => (!name.contains(['/', '%']), "may not contain '/' or '%'"),
        _ => (
            name.len() <= 253 && name.split('.').all(|part| is_label_of(part, 253, false)),
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'",
        ),
    };
    if !fits {
        causes.push(Cause::invalid("metadata.name", &json!(name), rule));
    }
    for (key, value) in metadata["labels"].as_object().into_iter().flatten() {
        let text = value.as_str().unwrap_or_default();
        if !is_qualified(key) {
            causes.push(Cause::invalid(
                "metadata.labels",
                &json!(key),
                "name part must consist of alphanumeric characters, '-', '_' or '.'",
            ));
        }
        if text.len() > 63 {
            causes.push(Cause::invalid("metadata.labels", value, "must be no more than 63 characters"));
        } else if !is_label_value(text) {
            causes.push(Cause::invalid(
                "metadata.labels",
                value,
                "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.'",
            ));
        }
    }
    let annotations = metadata["annotations"].as_object().into_iter().flatten();
    let size: usize = annotations.map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if size > MAX_ANNOTATION_BYTES {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            field: "metadata.annotations".to_owned(),
            message: format!("Too long: may not be more than {MAX_ANNOTATION_BYTES} bytes"),
        });
    }
    for finalizer in metadata["finalizers"].as_array().into_iter().flatten() {
        if !is_qualified(finalizer.as_str().unwrap_or_default()) {
            causes.push(Cause::invalid("metadata.finalizers", finalizer, "name part must be non-empty"));
        }
    }
    causes
}

fn is_label(name: &str, starts_with_letter: bool) -> bool {
    is_label_of(name, 63, starts_with_letter)
}

fn is_label_of(name: &str, limit: usize, starts_with_letter: bool) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty()
        && name.len() <= limit
        && name.chars().all(fits)
        && !name.starts_with('-')
        && !name.ends_with('-')
        && (!starts_with_letter || name.starts_with(|c: char| c.is_ascii_lowercase()))
}

fn is_label_value(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edge = |c: char| c.is_ascii_alphanumeric();
    text.is_empty() || (text.chars().all(fits) && text.starts_with(edge) && text.ends_with(edge))
}

fn is_qualified(name: &str) -> bool {
    let (prefix, name) = name.split_once('/').map_or((None, name), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(|prefix| prefix.split('.').all(|part| is_label_of(part, 253, false)))
        && !name.is_empty()
        && name.len() <= 63
        && is_label_value(name)
}
