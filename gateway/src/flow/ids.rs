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

/// `sl-` and 24 hex digits. Written digit by digit: two are made for each request, and
/// formatting one was 1,400 instructions (callgrind).
pub fn request_id() -> String {
    let mut id = String::with_capacity(3 + 24);
    id.push_str("sl-");
    hex(random(), 16, &mut id);
    hex(random(), 8, &mut id);
    id
}

/// The lowest `digits` digits of `bits`.
fn hex(bits: u64, digits: u32, out: &mut String) {
    for place in (0..digits).rev() {
        let digit = (bits >> (4 * place)) & 0xf;
        out.push(char::from_digit(digit as u32, 16).unwrap_or('0'));
    }
}
