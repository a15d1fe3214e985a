//! What a router knows, as it is saved over a restart of the gateway: sessions and the index, by replica names.
//!
//! Enters and leaves: a [`Saved`], which the gateway writes and reads. Hashes are the same in every process of one version of
//! Sluice; the number below is raised with them. What is learned of speeds isn't saved: it fades in minutes anyway.

use serde::{Deserialize, Serialize};
use std::time::Duration;

use super::choose::{Home, Router};

/// Of the form below and of the hashes in it. A file with another number is not read.
pub const SAVED_VERSION: u32 = 1;

/// Entries that are read of one file: above what any router keeps.
const ENTRIES_LIMIT: usize = 1_000_000;

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// [`SAVED_VERSION`].
    pub version: u32,
    /// Learned over all prompts.
    pub tokens_per_byte: f64,
    /// One each, in any order.
    pub replicas: Vec<SavedReplica>,
}

/// What is known of one replica. Ages are in seconds at the time of saving; the longest untouched come first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedReplica {
    /// Its name in the configuration.
    pub name: String,
    /// Hash, bytes, age.
    pub links: Vec<(u64, u64, u64)>,
    /// Session hash, age.
    pub sessions: Vec<(u64, u64)>,
}

impl Router {
    /// For the file. `names` are those of the replicas, by number; a number without a name is nobody's.
    pub fn save(&self, names: &[&str], now: Duration) -> Saved {
        let age = |touched: Duration| now.saturating_sub(touched).as_secs();
        let replicas = names
            .iter()
            .enumerate()
            .filter(|(_, name)| !name.is_empty())
            .map(|(place, name)| SavedReplica {
                name: (*name).to_owned(),
                links: self
                    .index
                    .entries(place)
                    .map(|(hash, bytes, touched)| (hash, bytes, age(touched)))
                    .collect(),
                sessions: self
                    .sessions
                    .oldest_first()
                    .filter(|(_, entry)| usize::from(entry.value.replica) == place)
                    .map(|(session, entry)| (session, age(entry.touched)))
                    .collect(),
            });
        Saved {
            version: SAVED_VERSION,
            tokens_per_byte: self.tokens_per_byte,
            replicas: replicas.collect(),
        }
    }

    /// Takes over what was saved `since` ago, into a router that knows nothing yet. Replicas that have gone are left out. False,
    /// and nothing is taken over, if it is of another version or no router's.
    pub fn restore(&mut self, saved: &Saved, names: &[&str], since: Duration) -> bool {
        let entries: usize = saved.replicas.iter().map(|r| r.links.len() + r.sessions.len()).sum();
        let ratio_is_one = saved.tokens_per_byte > 0.0 && saved.tokens_per_byte <= 2.0;
        if saved.version != SAVED_VERSION || entries > ENTRIES_LIMIT || !ratio_is_one {
            return false;
        }
        self.tokens_per_byte = saved.tokens_per_byte;
        self.restore_late(&saved.replicas, names, since, Duration::ZERO);
        true
    }

    /// The same for replicas of it that weren't there yet when the rest was taken over; sessions that have a home by now keep it.
    pub fn restore_late(&mut self, saved: &[SavedReplica], names: &[&str], since: Duration, now: Duration) {
        let known = |replica: &SavedReplica| names.iter().position(|name| *name == replica.name);
        let idle = self.settings.index.idle;
        // The router's time begins at zero: what is older is as old as that. Order keeps what ages can't.
        let is_fresh = |age: u64| Duration::from_secs(age).saturating_add(since) <= idle;
        let tokens_per_byte = self.tokens_per_byte;
        let mut sessions = Vec::new();
        for replica in saved {
            let Some(place) = known(replica) else { continue };
            for &(hash, bytes, _) in replica.links.iter().filter(|(_, _, age)| is_fresh(*age)) {
                self.index.restore(place, hash, bytes, tokens_per_byte, now);
            }
            let fresh = replica.sessions.iter().filter(|(_, age)| is_fresh(*age));
            sessions.extend(fresh.map(|&(session, age)| (age, session, place)));
        }
        sessions.sort_unstable_by_key(|(age, ..)| std::cmp::Reverse(*age));
        for (_, session, place) in sessions {
            if self.sessions.len() < self.settings.sessions
                && self.sessions.get(session).is_none()
                && let Ok(replica) = u16::try_from(place)
            {
                self.sessions.touch(session, Home { replica, bytes: 0 }, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::chain::{Chain, Link};
    use super::super::choose::{Question, Reason, RouteSettings};
    use super::*;
    use std::sync::Arc;

    fn router() -> Router {
        Router::new(2, RouteSettings::default())
    }

    fn chain(name: u64) -> Arc<Chain> {
        let links = (1..=4).map(|i| Link {
            hash: name * 100 + i,
            bytes: i * 4_000,
        });
        Arc::new(Chain::from_links(links.collect()))
    }

    /// Decides and dispatches; the replica and why.
    fn ask(router: &mut Router, session: u64, chain: &Arc<Chain>, ring: usize) -> (usize, Reason) {
        let question = Question {
            session,
            is_named: true,
            chain,
            may: &[true, true],
            hint: None,
        };
        let decision = router
            .choose(question, [ring].into_iter(), Duration::from_secs(5))
            .unwrap();
        router.dispatch(session, chain, &decision, Duration::from_secs(5));
        (decision.replica, decision.reason)
    }

    #[test]
    fn a_restart_keeps_sessions_and_caches_by_the_names_of_replicas() {
        let mut before = router();
        assert_eq!(ask(&mut before, 7, &chain(1), 1), (1, Reason::Ring));
        let saved = before.save(&["a", "b"], Duration::from_secs(60));
        let saved: Saved = serde_json::from_str(&serde_json::to_string(&saved).unwrap()).unwrap();
        let mut after = router();
        assert!(after.restore(&saved, &["b", "a"], Duration::from_secs(10)));
        assert_eq!(ask(&mut after, 7, &chain(9), 1), (0, Reason::Session));
        let mut forked = router();
        assert!(forked.restore(&saved, &["b", "new"], Duration::from_secs(10)));
        assert_eq!(ask(&mut forked, 8, &chain(1), 1), (0, Reason::Prefix));
    }

    #[test]
    fn one_that_comes_late_gets_what_was_saved_of_it_and_sessions_stay_where_they_went_meanwhile() {
        let mut before = router();
        assert_eq!(ask(&mut before, 7, &chain(1), 1), (1, Reason::Ring));
        let saved = before.save(&["a", "b"], Duration::from_secs(60));
        let restored = |meanwhile: &dyn Fn(&mut Router)| {
            let mut after = router();
            assert!(after.restore(&saved, &["a", ""], Duration::ZERO));
            meanwhile(&mut after);
            let at = Duration::from_secs(9);
            after.restore_late(&saved.replicas, &["", "b"], at, at);
            after
        };
        assert_eq!(ask(&mut restored(&|_| ()), 7, &chain(9), 0), (1, Reason::Session));
        assert_eq!(ask(&mut restored(&|_| ()), 8, &chain(1), 0), (1, Reason::Prefix));
        let went = restored(&|after| {
            let decision = ask(after, 7, &chain(1), 0);
            assert_eq!(decision, (0, Reason::Ring));
        });
        let home = went.save(&["a", "b"], Duration::from_secs(60));
        let sessions: Vec<usize> = home.replicas.iter().map(|replica| replica.sessions.len()).collect();
        assert_eq!(sessions, [1, 0]);
    }

    #[test]
    fn a_number_that_another_replica_has_begins_anew_and_the_others_stay() {
        let mut router = router();
        assert_eq!(ask(&mut router, 7, &chain(1), 1), (1, Reason::Ring));
        assert!(!router.is_idle(1) && router.is_idle(0) && router.is_idle(2));
        ask(&mut router, 8, &chain(2), 0);
        router.occupy(1);
        router.occupy(2);
        let saved = router.save(&["a", "", "c"], Duration::from_secs(60));
        let kept: Vec<_> = saved
            .replicas
            .iter()
            .map(|r| (r.name.as_str(), r.sessions.len()))
            .collect();
        assert_eq!(kept, [("a", 1), ("c", 0)], "nobody's number isn't saved");
        assert!(router.is_idle(1));
        assert_eq!(
            ask(&mut router, 7, &chain(1), 1),
            (1, Reason::Ring),
            "it knows no session"
        );
    }

    #[test]
    fn what_is_old_or_of_another_version_is_not_taken_over() {
        let mut before = router();
        ask(&mut before, 7, &chain(1), 1);
        let saved = before.save(&["a", "b"], Duration::from_secs(60));
        let mut after = router();
        assert!(after.restore(&saved, &["a", "b"], Duration::from_secs(3 * 3600)));
        assert_eq!(after.index_len(), 0);
        let other = Saved {
            version: SAVED_VERSION + 1,
            ..saved.clone()
        };
        assert!(!after.restore(&other, &["a", "b"], Duration::ZERO));
        let nonsense = Saved {
            tokens_per_byte: f64::NAN,
            ..saved
        };
        assert!(!after.restore(&nonsense, &["a", "b"], Duration::ZERO));
    }
}
