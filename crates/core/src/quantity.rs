//! Kubernetes quantities (`500m`, `2Gi`) as whole numbers.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The text of a quantity that was written as a number or a string.
pub fn text(quantity: &IntOrString) -> String {
    match quantity {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(text) => text.clone(),
    }
}

/// Bytes of a memory or storage quantity; `None` when it does not parse.
pub fn bytes(quantity: &IntOrString) -> Option<u64> {
    thousandths(&text(quantity)).map(|value| value / 1000)
}

/// Thousandths of a core of a CPU quantity; `None` when it does not parse.
pub fn millis(quantity: &IntOrString) -> Option<u64> {
    thousandths(&text(quantity))
}

fn thousandths(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let factor: u128 = match suffix {
        "m" => 1,
        "" => 1000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "T" => 1_000_000_000_000_000,
        "P" => 1_000_000_000_000_000_000,
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        "Ti" => 1000 << 40,
        "Pi" => 1000 << 50,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = u32::try_from(fraction.len()).ok().filter(|digits| *digits <= 6)?;
    let scaled: u128 = format!("{whole}{fraction}").parse().ok()?;
    u64::try_from(scaled.checked_mul(factor)? / 10_u128.pow(digits)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        let string = |text: &str| IntOrString::String(text.to_owned());
        assert_eq!(bytes(&string("2Gi")), Some(2 << 30));
        assert_eq!(bytes(&string("1.5Gi")), Some(3 << 29));
        assert_eq!(bytes(&string("2Pi")), Some(2 << 50));
        assert_eq!(bytes(&string("-1Gi")), None);
        assert_eq!(bytes(&string("500M")), Some(500_000_000));
        assert_eq!(bytes(&IntOrString::Int(1024)), Some(1024));
        assert_eq!(millis(&string("500m")), Some(500));
        assert_eq!(millis(&string("2")), Some(2000));
        assert_eq!(bytes(&string("2 Gi")), None);
        assert_eq!(bytes(&string("many")), None);
        assert_eq!(bytes(&string("99999999999999999999Gi")), None);
    }
}
