//! Where a stream is cut: seed 0 after each byte, else by a small generator, pieces of 1 to 16 bytes.

/// Cuts `whole` into pieces.
pub fn cut(whole: &[u8], seed: u8) -> impl Iterator<Item = &[u8]> {
    let mut state = u64::from(seed);
    let mut rest = whole;
    std::iter::from_fn(move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(u64::from(seed) | 1);
        let length = if seed == 0 { 1 } else { 1 + (state >> 60) as usize };
        let (piece, after) = rest.split_at(length.min(rest.len()));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}
