//! Label values, bounded: the first hundred that come are kept by name, all later ones count as [`OTHER`].
//!
//! A time series lives for ever in the process and in Prometheus, and names may come from clients. A lookup is one atomic
//! load and one hash, without a lock and without an allocation; only a new name takes the lock and copies the table.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use foldhash::fast::RandomState;

/// The label value of everything that came too late.
pub(super) const OTHER: &str = "other";

/// Label values that are kept by name.
pub(super) const LIMIT: usize = 100;

/// What belongs to each of the first [`LIMIT`] names, and to all others together.
pub(super) struct Bounded<K, V> {
    named: ArcSwap<Named<K, V>>,
    other: OnceLock<Arc<V>>,
    growing: Mutex<()>,
}

/// The table as it is at one time; it is replaced as a whole.
type Named<K, V> = HashMap<K, Arc<V>, RandomState>;

impl<K: Hash + Eq + Clone, V> Bounded<K, V> {
    pub(super) fn new() -> Self {
        let named = ArcSwap::from_pointee(HashMap::with_hasher(RandomState::default()));
        Self {
            named,
            other: OnceLock::new(),
            growing: Mutex::new(()),
        }
    }

    /// What belongs to `name`. `make` is called the first time; with `None` for what all late names share.
    pub(super) fn get<Q>(&self, name: &Q, make: impl FnOnce(Option<&Q>) -> V) -> Arc<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let named = self.named.load();
        if let Some(found) = named.get(name) {
            return Arc::clone(found);
        }
        if named.len() < LIMIT {
            self.grow(name, make)
        } else {
            Arc::clone(self.other.get_or_init(|| Arc::new(make(None))))
        }
    }

    /// Each name with what belongs to it; `None` stands for all late names.
    pub(super) fn for_each(&self, mut visit: impl FnMut(Option<&K>, &V)) {
        self.named
            .load()
            .iter()
            .for_each(|(name, value)| visit(Some(name), value));
        if let Some(other) = self.other.get() {
            visit(None, other);
        }
    }

    fn grow<Q>(&self, name: &Q, make: impl FnOnce(Option<&Q>) -> V) -> Arc<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let named = self.named.load();
        if let Some(found) = named.get(name) {
            return Arc::clone(found);
        }
        if named.len() >= LIMIT {
            return Arc::clone(self.other.get_or_init(|| Arc::new(make(None))));
        }
        let value = Arc::new(make(Some(name)));
        let mut grown = Named::clone(&named);
        grown.insert(name.to_owned(), Arc::clone(&value));
        self.named.store(Arc::new(grown));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_hundred_keep_their_names_and_the_rest_share_one() {
        let table = Bounded::<String, String>::new();
        for i in 0..LIMIT + 50 {
            let label = table.get(format!("m{i}").as_str(), |name| name.unwrap_or(OTHER).to_owned());
            let expected = if i < LIMIT { format!("m{i}") } else { OTHER.to_owned() };
            assert_eq!(*label, expected);
        }
        assert_eq!(*table.get("m7", |_| unreachable!("m7 is known")), "m7");
        let mut names = Vec::new();
        table.for_each(|name, _| names.push(name.cloned()));
        assert_eq!(names.len(), LIMIT + 1);
        assert_eq!(names.iter().filter(|name| name.is_none()).count(), 1);
    }

    #[test]
    fn threads_that_meet_at_a_new_name_get_the_same_value() {
        let table = Bounded::<String, usize>::new();
        let made = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for i in 0..LIMIT * 2 {
                        table.get(format!("m{i}").as_str(), |_| {
                            made.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
                        });
                    }
                });
            }
        });
        assert_eq!(made.into_inner(), LIMIT + 1);
    }
}
