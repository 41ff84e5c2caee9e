//! Two bytes an element.

use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::{largest, with_scale};

/// Magnitudes are brought below two to this power, where binary16 ends a little later.
const EXPONENT: i32 = 15;

/// The upper half of each, rounded to the nearest.
pub fn encode_bf16(values: &[f32]) -> Vec<u8> {
    let mut halves = vec![bf16::ZERO; values.len()];
    halves.convert_from_f32_slice(values);
    bytes_of(halves.reinterpret_cast())
}

pub fn decode_bf16(payload: &[u8], elements: usize) -> Result<Vec<f32>, &'static str> {
    let bits = bits_of(payload, elements)?;
    Ok(bits.map(|bits| bf16::from_bits(bits).to_f32()).collect())
}

/// A power of two that all are divided by, so that the largest fits, and the nearest of each.
pub fn encode_f16(values: &[f32]) -> Vec<u8> {
    let scale = scale_for(largest(values));
    let scaled: Vec<f32> = values.iter().map(|value| value / scale).collect();
    let mut halves = vec![f16::ZERO; values.len()];
    halves.convert_from_f32_slice(&scaled);
    [&scale.to_le_bytes()[..], &bytes_of(halves.reinterpret_cast())].concat()
}

pub fn decode_f16(payload: &[u8], elements: usize) -> Result<Vec<f32>, &'static str> {
    let (scale, rest) = with_scale(payload)?;
    let bits = bits_of(rest, elements)?;
    Ok(bits.map(|bits| f16::from_bits(bits).to_f32() * scale).collect())
}

/// The power of two that a magnitude is divided by, so that it is as large as it may be.
fn scale_for(most: f32) -> f32 {
    if most == 0.0 || !most.is_finite() {
        return 1.0;
    }
    // What is too small for that to be a normal number is small enough as it is.
    let exponent = (most.to_bits() >> 23) as i32 - 127 + 1 - EXPONENT;
    if exponent < -126 { f32::MIN_POSITIVE } else { 2f32.powi(exponent) }
}

fn bytes_of(halves: &[u16]) -> Vec<u8> {
    halves.iter().flat_map(|half| half.to_le_bytes()).collect()
}

fn bits_of(payload: &[u8], elements: usize) -> Result<impl Iterator<Item = u16>, &'static str> {
    if payload.len() != elements * 2 {
        return Err("there are two bytes an element");
    }
    Ok(payload.as_chunks::<2>().0.iter().map(|half| u16::from_le_bytes(*half)))
}
