//! Hexadecimal text: digests and random names.

use std::fmt::Write;

use ring::rand::{SecureRandom, SystemRandom};

/// `bytes` in lower case hex.
pub fn encode(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A random name of 16 digits.
pub fn random_name() -> std::io::Result<String> {
    let mut bytes = [0; 8];
    SystemRandom::new().fill(&mut bytes).map_err(|_| std::io::Error::other("the system gives no random numbers"))?;
    Ok(encode(&bytes))
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_become_two_digits_each() {
        assert_eq!(super::encode(&[0, 9, 255]), "0009ff");
        assert_ne!(super::random_name().unwrap(), super::random_name().unwrap());
    }
}
