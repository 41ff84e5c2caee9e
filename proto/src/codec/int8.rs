//! One byte an element: whole multiples of a block's largest magnitude over 127.

use super::{largest, with_scale};

/// Multiples go from minus this to this.
const MOST: f32 = 127.0;

/// The scale, and the nearest multiple of each.
pub fn encode(values: &[f32]) -> Vec<u8> {
    let scale = largest(values) / MOST;
    // What is all zero, or too small to be told from it, is zero; so is what is no number.
    let scale = if scale.is_normal() { scale } else { 0.0 };
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let multiples = values.iter().map(|value| (value * inverse).round_ties_even().clamp(-MOST, MOST) as i8 as u8);
    scale.to_le_bytes().into_iter().chain(multiples).collect()
}

pub fn decode(payload: &[u8], elements: usize) -> Result<Vec<f32>, &'static str> {
    let (scale, multiples) = with_scale(payload)?;
    if multiples.len() != elements {
        return Err("there is one byte an element after the scale");
    }
    Ok(multiples.iter().map(|multiple| f32::from(*multiple as i8) * scale).collect())
}
