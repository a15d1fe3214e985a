//! What things are called on a server that others can read: keyed hashes of sessions and of places in prompts.
//!
//! Enters: a backend's name, a session's hash, a link's. Leaves: a key without the session's name, a mark without the prompt's text.
//! Who has the secret can tell whether a conversation that they know is there; nobody else can, nor whether two have a prompt in common.

use sha2::{Digest, Sha256};

/// The form of keys and notes: gateways of a version that has another one share nothing with those of this.
const FORM: u32 = 1;

/// What is hashed.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Kind {
    Session,
    Place,
}

/// Hashes with one secret.
#[derive(Clone)]
pub(super) struct Names {
    prefix: String,
    /// Of the secret: always as long.
    secret: [u8; 32],
}

/// One conversation's.
pub(super) struct Name<'n> {
    names: &'n Names,
    /// Of backend and session.
    digest: [u8; 32],
}

impl Names {
    /// Under this prefix, with this secret.
    pub(super) fn new(prefix: &str, secret: &str) -> Names {
        Names {
            prefix: format!("{prefix}:{FORM}"),
            secret: Sha256::digest(secret.as_bytes()).into(),
        }
    }

    /// Of this backend's session.
    pub(super) fn of(&self, backend: &str, session: u64) -> Name<'_> {
        Name {
            names: self,
            digest: self.digest(Kind::Session, &session.to_be_bytes(), backend.as_bytes()),
        }
    }

    /// A key of no session, by which a server is tried.
    pub(super) fn trial(&self) -> String {
        format!("{}:trial", self.prefix)
    }

    /// All but the last part are always as long, so that no two inputs are one.
    fn digest(&self, kind: Kind, first: &[u8], last: &[u8]) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.secret);
        hash.update([kind as u8]);
        hash.update(first);
        hash.update(last);
        hash.finalize().into()
    }
}

impl Name<'_> {
    /// The key on the server.
    pub(super) fn key(&self) -> String {
        // Half of it is more than enough to tell conversations apart.
        let half = self.digest.iter().take(16);
        let half: String = half.map(|byte| format!("{byte:02x}")).collect();
        format!("{}:{half}", self.names.prefix)
    }

    /// Of a place in its prompt.
    pub(super) fn mark(&self, link: u64) -> u64 {
        let digest = self.names.digest(Kind::Place, &self.digest, &link.to_be_bytes());
        digest
            .iter()
            .take(8)
            .fold(0, |mark, byte| (mark << 8) | u64::from(*byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_for_all_who_have_the_secret_and_for_nobody_else() {
        let of = |secret: &str, backend: &str, session: u64| {
            let names = Names::new("sluice", secret);
            let name = names.of(backend, session);
            (name.key(), name.mark(7))
        };
        let name = of("secret", "b", 1);
        assert_eq!(name, of("secret", "b", 1));
        assert_eq!(name.0.len(), "sluice:1:".len() + 32);
        for (other, secret, backend, session) in [
            ("secret", "", "b", 1),
            ("backend", "secret", "c", 1),
            ("session", "secret", "b", 2),
        ] {
            let other_name = of(secret, backend, session);
            assert!(name.0 != other_name.0 && name.1 != other_name.1, "another {other}");
        }
        let names = Names::new("sluice", "secret");
        assert_ne!(names.of("b", 1).mark(7), names.of("b", 1).mark(8));
        assert_ne!(
            names.of("b", 1).mark(7),
            names.of("b", 2).mark(7),
            "a prompt in common isn't seen"
        );
    }
}
