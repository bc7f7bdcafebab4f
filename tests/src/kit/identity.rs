//! The key by which the engine signs its calls to `serve`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{KeyPair, PKCS_ED25519, SigningKey};
use serde_json::{Value, json};

/// Base 58, as in the public keys of Restate.
const DIGITS: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

pub struct Identity {
    key: KeyPair,
    /// The private key, in PEM.
    pub file: PathBuf,
}

impl Identity {
    /// Makes a new key and writes it to `folder`, for the engine alone.
    pub fn new(folder: &Path, name: &str) -> anyhow::Result<Identity> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        fs::create_dir_all(folder)?;
        let file = folder.join(format!("{name}.pem"));
        fs::write(&file, key.serialize_pem())?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        Ok(Identity { key, file })
    }

    /// As `serve` takes it (`--identity-key`).
    pub fn public_key(&self) -> String {
        format!("publickeyv1_{}", base58(self.key.public_key_raw()))
    }

    /// The signature of a call to `path` that is made at `now`, in seconds since 1970, as the engine puts it into the header
    /// `x-restate-jwt-v1`.
    pub fn sign(&self, path: &str, now: i64) -> anyhow::Result<String> {
        let part = |value: &Value| base64url(value.to_string().as_bytes());
        let head = part(&json!({ "typ": "JWT", "alg": "EdDSA", "kid": self.public_key() }));
        let claims = part(&json!({ "aud": path, "nbf": now - 60, "iat": now, "exp": now + 60 }));
        let signed = format!("{head}.{claims}");
        let signature = base64url(&self.key.sign(signed.as_bytes())?);
        Ok(format!("{signed}.{signature}"))
    }
}

fn base58(bytes: &[u8]) -> String {
    // The number to base 58, the smallest digit first.
    let mut digits: Vec<u32> = Vec::new();
    for byte in bytes {
        let mut carry = u32::from(*byte);
        for digit in &mut digits {
            carry += *digit << 8;
            *digit = carry % 58;
            carry /= 58;
        }
        while carry > 0 {
            digits.push(carry % 58);
            carry /= 58;
        }
    }
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let digits = std::iter::repeat_n(0, zeros).chain(digits.into_iter().rev());
    digits.map(|digit| char::from(DIGITS[digit as usize])).collect()
}

pub(super) fn base64url(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let block = chunk.iter().fold(0_u32, |block, byte| block << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            let letter = block >> (18 - 6 * place) & 63;
            text.push(char::from(LETTERS[letter as usize]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_everybody_writes_them() {
        assert_eq!(base58(b"Hello World!"), "2NEpo7TZRRrLZSi2U");
        assert_eq!(base58(&[0, 0, 1]), "112");
        assert_eq!(
            (base64url(b"f"), base64url(b"fo"), base64url(b"foo")),
            ("Zg".into(), "Zm8".into(), "Zm9v".into())
        );
    }
}
