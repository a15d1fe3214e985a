//! A fresh key: made, shown once, kept nowhere.

use std::{fmt, net::SocketAddr};

use sha2::{Digest as _, Sha256};

use super::Digest;

/// What every key of ours begins with, so that secret scanners and people recognise it.
const PREFIX: &str = "sk-sluice-";
/// Letters of a key behind the prefix: 43 of 62 hold 256 bits.
const LETTERS: usize = 43;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A key in clear. `Debug` masks it; only [`Secret::reveal`] gives it out.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Draws a key from the system's random source.
    ///
    /// # Errors
    /// The system has none.
    pub fn draw() -> Result<Self, getrandom::Error> {
        let mut key = String::from(PREFIX);
        let mut random = [0u8; 64];
        // Each round gives 62 letters on average; the loop ends as surely as the source is random.
        while key.len() < PREFIX.len() + LETTERS {
            getrandom::fill(&mut random)?;
            let missing = PREFIX.len() + LETTERS - key.len();
            // 248 = 4 × 62: what lies above would make some letters likelier.
            let letters = random
                .iter()
                .filter(|byte| **byte < 248)
                .map(|byte| ALPHABET[usize::from(*byte) % 62]);
            key.extend(letters.take(missing).map(char::from));
        }
        Ok(Self(key))
    }

    /// The key itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub(super) fn digest(&self) -> Digest {
        Sha256::digest(self.0.as_bytes()).into()
    }

    /// The lines for a person's first request, the key among them: to be shown once.
    pub fn introduction(&self, listen: SocketAddr, tls: bool) -> String {
        let scheme = if tls { "https" } else { "http" };
        let host = match listen {
            any if any.ip().is_unspecified() => format!("localhost:{}", any.port()),
            listen => listen.to_string(),
        };
        let key = &self.0;
        format!(
            "\nThere was no key, so one was made. It is shown this once; only its hash is kept:\n\n    {key}\n\nTry it:\n\n    \
             curl -N {scheme}://{host}/v1/chat/completions \\\n      -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\\n      \
             -d '{{\"messages\":[{{\"role\":\"user\",\"content\":\"Say hello\"}}],\"stream\":true}}'\n"
        )
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_long_recognisable_and_different() {
        let keys: std::collections::HashSet<String> =
            (0..100).map(|_| Secret::draw().unwrap().reveal().to_owned()).collect();
        assert_eq!(keys.len(), 100);
        for key in keys {
            let letters = key.strip_prefix("sk-sluice-").unwrap();
            assert_eq!(letters.len(), 43);
            assert!(letters.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{key}");
        }
    }

    #[test]
    fn debug_masks_a_key() {
        let secret = Secret::draw().unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(…)");
    }

    #[test]
    fn the_introduction_is_a_line_to_paste() {
        let secret = Secret("sk-sluice-test".to_owned());
        insta::assert_snapshot!(
            "introduction",
            secret.introduction("0.0.0.0:5002".parse().unwrap(), false)
        );
    }
}
