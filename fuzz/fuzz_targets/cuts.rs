//! Where a stream is cut: seed 0 after each byte, else by a small generator, pieces of 0 to 15 bytes.

/// Cuts `whole` into pieces.
pub fn cut(whole: &[u8], seed: u8) -> impl Iterator<Item = &[u8]> {
    let mut state = u64::from(seed);
    let mut rest = whole;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(u64::from(seed));
        let length = if seed == 0 { 1 } else { (state >> 60) as usize };
        let (piece, after) = rest.split_at(length.min(rest.len()));
        rest = after;
        Some(piece)
    })
    // An empty piece costs nothing, but a generator that is stuck at zero would never end.
    .take(16 * whole.len() + 16)
    .chain(std::iter::once_with(move || -> &[u8] { &[] }))
}
