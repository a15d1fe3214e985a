//! Ids of requests: unguessable, since a request can be cancelled by its id.

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher, RandomState};

thread_local! {
    static STATE: (RandomState, Cell<u64>) = (RandomState::new(), Cell::new(0));
}

/// 64 bits from the standard library's keyed hash (SipHash with a random key per thread): unique enough for ids and
/// seeds, and no system call. Not for keys.
pub fn random() -> u64 {
    STATE.with(|(state, count)| {
        count.set(count.get().wrapping_add(1));
        let mut hasher = state.build_hasher();
        hasher.write_u64(count.get());
        hasher.finish()
    })
}

/// `sl-` and 24 hex digits.
pub fn request_id() -> String {
    format!("sl-{:016x}{:08x}", random(), random() as u32)
}
