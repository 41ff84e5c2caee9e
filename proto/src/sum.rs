//! The one add kernel, and the layout of f32 payloads.
//!
//! A plain elementwise loop: each element is one IEEE addition, so vectorisation cannot change a bit.

/// Adds `part` onto `sum`, element by element. Both have the same length.
pub fn add(sum: &mut [f32], part: &[f32]) {
    debug_assert_eq!(sum.len(), part.len());
    for (sum, part) in sum.iter_mut().zip(part) {
        *sum += part;
    }
}

/// Adds a little-endian f32 payload onto `sum`. The payload has `4 × sum.len()` bytes; its alignment is free.
pub fn add_payload(sum: &mut [f32], payload: &[u8]) {
    debug_assert_eq!(sum.len() * 4, payload.len());
    for (sum, part) in sum.iter_mut().zip(payload.as_chunks::<4>().0) {
        *sum += f32::from_le_bytes(*part);
    }
}

/// The sum of two little-endian f32 payloads of the same size.
pub fn of_payloads(left: &[u8], right: &[u8]) -> Vec<f32> {
    debug_assert_eq!(left.len(), right.len());
    let pairs = left.as_chunks::<4>().0.iter().zip(right.as_chunks::<4>().0);
    pairs.map(|(left, right)| f32::from_le_bytes(*left) + f32::from_le_bytes(*right)).collect()
}

/// Divides every value.
pub fn divide(values: &mut [f32], by: f32) {
    match exact_inverse(by) {
        Some(1.0) => {}
        Some(inverse) => values.iter_mut().for_each(|value| *value *= inverse),
        None => values.iter_mut().for_each(|value| *value /= by),
    }
}

/// A little-endian f32 payload, divided.
pub fn divided_payload(payload: &[u8], by: f32) -> Vec<f32> {
    let values = payload.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value));
    match exact_inverse(by) {
        Some(inverse) => values.map(|value| value * inverse).collect(),
        None => values.map(|value| value / by).collect(),
    }
}

/// What to multiply by in place of dividing, where that gives the same bits: of powers of two, both are the same number,
/// rounded once. A multiplication takes a fraction of a division's time.
fn exact_inverse(by: f32) -> Option<f32> {
    let is_power_of_two = by.is_normal() && by.to_bits() & 0x007f_ffff == 0;
    is_power_of_two.then(|| 1.0 / by).filter(|inverse| inverse.is_normal())
}

/// Copies a little-endian f32 payload into `values`. The payload has `4 × values.len()` bytes.
pub fn read_payload(values: &mut [f32], payload: &[u8]) {
    debug_assert_eq!(values.len() * 4, payload.len());
    for (value, part) in values.iter_mut().zip(payload.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(*part);
    }
}

/// Adds a little-endian f32 payload behind `values`.
pub fn extend_from_payload(values: &mut Vec<f32>, payload: &[u8]) {
    values.extend(payload.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)));
}

/// The sum of squares in f64, added in order of index.
///
/// Eight fixed lanes, then lane by lane: the same bits on every machine, and a loop that vectorises.
pub fn sum_of_squares(values: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    let (chunks, rest) = values.as_chunks::<8>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(*value) * f64::from(*value);
        }
    }
    let tail = rest.iter().map(|v| f64::from(*v) * f64::from(*v));
    lanes.into_iter().chain(tail).fold(0.0, |sum, x| sum + x)
}

/// Whether no value is infinite or NaN: of those, and of no others, one added to the exponent carries into the sign, in a
/// loop of additions and bits that vectorises on any machine.
pub fn all_finite(values: &[f32]) -> bool {
    let carried = |value: &f32| (value.to_bits() & 0x7f80_0000).wrapping_add(0x0080_0000);
    values.iter().fold(0, |bits, value| bits | carried(value)) & 0x8000_0000 == 0
}

/// Adds so many of one value.
pub fn push_run(values: &mut Vec<f32>, count: usize, value: f32) {
    values.resize(values.len() + count, value);
}

/// Whether every value has the bits of `want`.
pub fn all_are(values: &[f32], want: f32) -> bool {
    values.iter().fold(0, |bits, value| bits | (value.to_bits() ^ want.to_bits())) == 0
}

/// Views f32 values as the bytes of a payload.
///
/// Only little-endian machines are supported; the build fails on others.
pub fn payload_of(values: &[f32]) -> &[u8] {
    const { assert!(cfg!(target_endian = "little"), "payloads are little-endian") };
    bytemuck::cast_slice(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_adds_like_its_values_at_any_alignment() {
        let values: Vec<f32> = (0..1001).map(|i| (i as f32).sin()).collect();
        let mut bytes = vec![0u8];
        bytes.extend_from_slice(payload_of(&values));
        let (mut a, mut b) = (vec![0.1f32; 1001], vec![0.1f32; 1001]);
        add(&mut a, &values);
        add_payload(&mut b, &bytes[1..]);
        assert_eq!(a, b);
        read_payload(&mut b, &bytes[1..]);
        assert_eq!(b, values);
        extend_from_payload(&mut b, &bytes[5..]);
        assert_eq!(b[1001..], values[1..]);
        let doubled: Vec<f32> = values.iter().map(|value| value + value).collect();
        assert_eq!(of_payloads(&bytes[1..], payload_of(&values)), doubled);
        let mut thirds = values.clone();
        divide(&mut thirds, 3.0);
        assert_eq!(divided_payload(&bytes[1..], 3.0), thirds);
        for by in [1.0f32, 2.0, 256.0, 0.5, 3.0, 65_536.0, f32::MIN_POSITIVE, 1e-40, 1e38] {
            let (mut quotients, numbers) = (values.clone(), [values.as_slice(), &[1e-39, -1e-44, 3e38]].concat());
            divide(&mut quotients, by);
            assert!(quotients.iter().zip(&values).all(|(got, value)| got.to_bits() == (value / by).to_bits()), "{by}");
            let divided = divided_payload(payload_of(&numbers), by);
            assert!(divided.iter().zip(&numbers).all(|(got, value)| got.to_bits() == (value / by).to_bits()), "{by}");
        }
    }

    #[test]
    fn finite_means_all() {
        assert!(all_finite(&[0.0, -1.0, f32::MAX, f32::MIN_POSITIVE]) && all_finite(&[]));
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!all_finite(&[1.0, bad, 2.0]));
        }
        assert!(all_are(&[-0.0; 9], -0.0) && !all_are(&[-0.0, 0.0], -0.0) && all_are(&[], 1.0));
    }

    #[test]
    fn squares_are_summed_in_f64() {
        assert_eq!(sum_of_squares(&[3.0; 11]), 99.0);
        assert_eq!(sum_of_squares(&[1e30]), 1e30f32 as f64 * 1e30f32 as f64);
        assert_eq!(sum_of_squares(&[]), 0.0);
    }
}
