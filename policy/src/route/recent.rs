//! Values by hash, in the order in which they were last touched.
//!
//! Every change of the order is one step in a tree: a linked list would save a microsecond a request and cost the proof that its
//! ends meet. The owner bounds it; nothing here expires by itself, since there is no clock.

use foldhash::{HashMap, HashMapExt};
use std::collections::BTreeMap;
use std::time::Duration;

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Recent<V> {
    entries: HashMap<u64, Entry<V>>,
    order: BTreeMap<u64, u64>,
    tick: u64,
}

/// A value with its last touch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<V> {
    tick: u64,
    /// When it was last touched.
    pub(super) touched: Duration,
    /// What was kept.
    pub(super) value: V,
}

impl<V> Default for Recent<V> {
    fn default() -> Self {
        Recent {
            entries: HashMap::new(),
            order: BTreeMap::new(),
            tick: 0,
        }
    }
}

impl<V> Recent<V> {
    /// Entries kept.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Without a touch.
    pub(super) fn get(&self, key: u64) -> Option<&Entry<V>> {
        self.entries.get(&key)
    }

    /// Puts it first; what was kept under the key before comes back.
    pub(super) fn touch(&mut self, key: u64, value: V, now: Duration) -> Option<Entry<V>> {
        self.tick += 1;
        let entry = Entry {
            tick: self.tick,
            touched: now,
            value,
        };
        let before = self.entries.insert(key, entry);
        if let Some(before) = &before {
            self.order.remove(&before.tick);
        }
        self.order.insert(self.tick, key);
        before
    }

    /// Takes one out.
    pub(super) fn remove(&mut self, key: u64) -> Option<V> {
        let entry = self.entries.remove(&key)?;
        self.order.remove(&entry.tick);
        Some(entry.value)
    }

    /// When the last one was touched.
    pub(super) fn oldest(&self) -> Option<Duration> {
        let (_, key) = self.order.first_key_value()?;
        self.entries.get(key).map(|entry| entry.touched)
    }

    /// Takes the last one out.
    pub(super) fn pop_oldest(&mut self) -> Option<(u64, V)> {
        let (_, key) = self.order.pop_first()?;
        Some((key, self.entries.remove(&key)?.value))
    }

    /// Only those of such values stay.
    pub(super) fn retain(&mut self, mut stays: impl FnMut(&V) -> bool) {
        let Recent { entries, order, .. } = self;
        order.retain(|_, key| entries.get(key).is_some_and(|entry| stays(&entry.value)));
        entries.retain(|_, entry| order.contains_key(&entry.tick));
    }

    /// From the last to the first.
    pub(super) fn oldest_first(&self) -> impl Iterator<Item = (u64, &Entry<V>)> {
        self.order
            .values()
            .filter_map(|key| self.entries.get(key).map(|entry| (*key, entry)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_the_touches() {
        let mut recent = Recent::default();
        let at = Duration::from_secs;
        for key in 1..=3 {
            assert!(recent.touch(key, key * 10, at(key)).is_none());
        }
        assert_eq!(recent.touch(1, 11, at(4)).unwrap().value, 10);
        assert_eq!(recent.oldest(), Some(at(2)));
        let keys: Vec<u64> = recent.oldest_first().map(|(key, _)| key).collect();
        assert_eq!(keys, [2, 3, 1]);
        assert_eq!(recent.pop_oldest(), Some((2, 20)));
        assert_eq!((recent.len(), recent.get(1).unwrap().value), (2, 11));
        recent.retain(|value| *value == 11);
        assert_eq!((recent.len(), recent.pop_oldest()), (1, Some((1, 11))));
    }
}
