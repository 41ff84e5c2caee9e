//! The largest of a block's elements only.

/// Bytes of an element that is sent: where it is, and its value.
pub const ENTRY: usize = 6;

/// The share of the elements with the largest magnitudes, at least one; of equal ones, the first.
pub fn encode(values: &[f32], share: f32) -> Vec<u8> {
    let count = ((values.len() as f64 * f64::from(share)).ceil() as usize).clamp(1.min(values.len()), values.len());
    let mut order: Vec<u16> = (0..=u16::MAX).take(values.len()).collect();
    if count < order.len() {
        let magnitude = |at: u16| values[usize::from(at)].abs();
        order.select_nth_unstable_by(count, |a, b| magnitude(*b).total_cmp(&magnitude(*a)).then(a.cmp(b)));
        order.truncate(count);
        order.sort_unstable();
    }
    let entry = |at: u16| {
        let ([a, b], [c, d, e, f]) = (at.to_le_bytes(), values[usize::from(at)].to_le_bytes());
        [a, b, c, d, e, f]
    };
    order.into_iter().flat_map(entry).collect()
}

pub fn decode(payload: &[u8], elements: usize) -> Result<Vec<f32>, &'static str> {
    let (entries, rest) = payload.as_chunks::<ENTRY>();
    if !rest.is_empty() || entries.len() > elements {
        return Err("there are six bytes for each element that is sent");
    }
    let (mut values, mut last) = (vec![0.0; elements], None);
    for [a, b, value @ ..] in entries {
        let at = usize::from(u16::from_le_bytes([*a, *b]));
        if last >= Some(at) || at >= elements {
            return Err("an index is too large, or not larger than the one before it");
        }
        values[at] = f32::from_le_bytes(*value);
        last = Some(at);
    }
    Ok(values)
}
