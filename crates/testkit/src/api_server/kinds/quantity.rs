//! Quantities (`1Gi`, `500m`): their value and the canonical form in which a real server stores them.

use serde_json::{Value, json};

const BINARY: &[(&str, i128)] =
    &[("Ei", 1 << 60), ("Pi", 1 << 50), ("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
const DECIMAL: &[(&str, i128)] =
    &[("E", 1_000_000), ("P", 1_000), ("T", 1_000), ("G", 1_000), ("M", 1_000), ("k", 1_000), ("", 1), ("m", 1)];

/// The value in thousandths; `None` when it is no quantity.
pub(crate) fn parse(text: &str) -> Option<i128> {
    let end = text.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '-' | '+')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let thousandths = decimal_thousandths(number)?;
    if let Some((_, factor)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return thousandths.checked_mul(*factor);
    }
    let power = match suffix {
        "m" => return Some(ceiling_div(thousandths, 1000)),
        "" => 0,
        "k" => 3,
        "M" => 6,
        "G" => 9,
        "T" => 12,
        "P" => 15,
        "E" => 18,
        exponent => exponent.strip_prefix(['e', 'E'])?.parse::<u32>().ok()?,
    };
    thousandths.checked_mul(10_i128.checked_pow(power)?)
}

fn decimal_thousandths(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let padded: String = fraction.chars().chain("000".chars()).take(3).collect();
    let value = whole.checked_mul(1000)?.checked_add(padded.parse().ok()?)?;
    Some(if negative { -value } else { value })
}

fn ceiling_div(value: i128, by: i128) -> i128 {
    value.div_euclid(by) + i128::from(value.rem_euclid(by) != 0)
}

/// The canonical form: the largest suffix of the same family that leaves a whole number.
pub(super) fn canonical(text: &str) -> Option<String> {
    let thousandths = parse(text)?;
    if thousandths == 0 {
        return Some("0".to_owned());
    }
    let whole = thousandths % 1000 == 0;
    if text.ends_with('i') && whole {
        let value = thousandths / 1000;
        let unit = BINARY.iter().find(|(_, factor)| value % factor == 0);
        return Some(unit.map_or_else(|| value.to_string(), |(suffix, factor)| format!("{}{suffix}", value / factor)));
    }
    let mut rest = thousandths;
    let mut suffix = "m";
    for (name, _) in DECIMAL.iter().rev().skip(1) {
        if rest % 1000 != 0 {
            break;
        }
        rest /= 1000;
        suffix = name;
    }
    Some(format!("{rest}{suffix}"))
}

/// Brings every value of a map of quantities into its canonical form.
pub(super) fn canonicalise(map: &mut Value) {
    for value in map.as_object_mut().into_iter().flat_map(|map| map.values_mut()) {
        let text = match &*value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => continue,
        };
        if let Some(canonical) = canonical(&text) {
            *value = json!(canonical);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_stored_in_their_canonical_form() {
        for (given, stored) in [
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1500m", "1500m"),
            ("1000", "1k"),
            ("1e3", "1k"),
            ("128974848", "128974848"),
            ("0", "0"),
            ("2Gi", "2Gi"),
            ("1025Ki", "1025Ki"),
        ] {
            assert_eq!(canonical(given).as_deref(), Some(stored), "{given}");
        }
        assert_eq!(canonical("much"), None);
        assert_eq!(parse("1Ki"), Some(1_024_000));
    }
}
