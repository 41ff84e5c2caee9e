//! Codecs: gradients in fewer bytes than four an element.
//!
//! Each block of a slice's gradient is encoded by itself and decoded before anything is added, so codecs know nothing of modes,
//! shards or optimizers. Encoding is a pure function of the values. What it loses, [`Codec::encode`] tells, so that the next
//! gradient of the same slice can make up for it (error feedback: Seide et al., 2014; Karimireddy et al., 2019).

use std::{fmt, str::FromStr};

mod halves;
mod int8;
mod topk;

/// How gradients are encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Codec {
    /// As they are.
    #[default]
    F32,
    /// Two bytes an element, with the range of four: the nearest.
    Bf16,
    /// Two bytes an element, scaled by a power of two for each block: the nearest.
    F16,
    /// One byte an element and a scale for each block, with error feedback.
    Int8,
    /// Of each block this share of the elements, the largest, with error feedback.
    TopK(f32),
}

/// How one block is encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// Little-endian IEEE 754 binary32.
    #[default]
    F32,
    /// The upper halves of binary32.
    Bf16,
    /// A binary32 that all are divided by, then binary16.
    F16,
    /// A binary32 that all are multiples of, then how many times, as signed bytes.
    Int8,
    /// Pairs of an index, ascending, in two bytes and a binary32; all others are zero.
    TopK,
}

/// A payload that is not what its encoding says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes are no {encoding:?} of {elements} elements: {problem}")]
pub struct CodecError {
    /// The encoding.
    pub encoding: Encoding,
    /// The payload's size.
    pub bytes: usize,
    /// The block's.
    pub elements: usize,
    /// What is wrong.
    pub problem: &'static str,
}

impl Codec {
    /// Whether encoding loses anything.
    pub fn is_lossy(self) -> bool {
        self != Codec::F32
    }

    /// Whether what is lost is made up for with the next gradient.
    pub fn feeds_back(self) -> bool {
        matches!(self, Codec::Int8 | Codec::TopK(_))
    }

    /// How blocks are encoded.
    pub fn encoding(self) -> Encoding {
        match self {
            Codec::F32 => Encoding::F32,
            Codec::Bf16 => Encoding::Bf16,
            Codec::F16 => Encoding::F16,
            Codec::Int8 => Encoding::Int8,
            Codec::TopK(_) => Encoding::TopK,
        }
    }

    /// Bytes of an encoded element, about.
    pub fn bytes_per_element(self) -> f64 {
        match self {
            Codec::F32 => 4.0,
            Codec::Bf16 | Codec::F16 => 2.0,
            Codec::Int8 => 1.0,
            Codec::TopK(share) => f64::from(share) * topk::ENTRY as f64,
        }
    }

    /// Encodes a block of at most 65 536 values, and leaves in their place what was lost.
    pub fn encode(self, values: &mut [f32]) -> Vec<u8> {
        let payload = match self {
            Codec::F32 => crate::sum::payload_of(values).to_vec(),
            Codec::Bf16 => halves::encode_bf16(values),
            Codec::F16 => halves::encode_f16(values),
            Codec::Int8 => int8::encode(values),
            Codec::TopK(share) => topk::encode(values, share),
        };
        match self.encoding().decode(&payload, values.len()) {
            Ok(decoded) => values.iter_mut().zip(decoded).for_each(|(value, decoded)| *value -= decoded),
            Err(problem) => debug_assert!(false, "{problem}"),
        }
        payload
    }
}

impl Encoding {
    /// The values of a block of so many elements.
    ///
    /// # Errors
    /// A payload of another size, or that makes no sense.
    pub fn decode(self, payload: &[u8], elements: usize) -> Result<Vec<f32>, CodecError> {
        let decoded = match self {
            Encoding::F32 => match payload.len() == elements * 4 {
                true => Ok(crate::sum::divided_payload(payload, 1.0)),
                false => Err("there are four bytes an element"),
            },
            Encoding::Bf16 => halves::decode_bf16(payload, elements),
            Encoding::F16 => halves::decode_f16(payload, elements),
            Encoding::Int8 => int8::decode(payload, elements),
            Encoding::TopK => topk::decode(payload, elements),
        };
        decoded.map_err(|problem| CodecError { encoding: self, bytes: payload.len(), elements, problem })
    }
}

impl FromStr for Codec {
    type Err = String;

    fn from_str(text: &str) -> Result<Codec, String> {
        Ok(match text {
            "f32" => Codec::F32,
            "bf16" => Codec::Bf16,
            "f16" => Codec::F16,
            "int8" => Codec::Int8,
            _ => {
                let share = text.strip_prefix("topk:").and_then(|share| share.parse().ok());
                let share = share.filter(|share: &f32| *share > 0.0 && *share <= 1.0);
                Codec::TopK(share.ok_or("must be f32, bf16, f16, int8 or topk:SHARE, such as topk:0.01")?)
            }
        })
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Codec::F32 => f.write_str("f32"),
            Codec::Bf16 => f.write_str("bf16"),
            Codec::F16 => f.write_str("f16"),
            Codec::Int8 => f.write_str("int8"),
            Codec::TopK(share) => write!(f, "topk:{share}"),
        }
    }
}

/// A scale at the head of a payload, and what follows it.
fn with_scale(payload: &[u8]) -> Result<(f32, &[u8]), &'static str> {
    let (scale, rest) = payload.split_first_chunk::<4>().ok_or("it has no scale")?;
    let scale = f32::from_le_bytes(*scale);
    if scale.is_finite() { Ok((scale, rest)) } else { Err("its scale is no number") }
}

/// The largest magnitude; of values that are no numbers, whatever.
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most, value| most.max(value.abs()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Codec; 6] = [Codec::F32, Codec::Bf16, Codec::F16, Codec::Int8, Codec::TopK(0.01), Codec::TopK(1.0)];

    #[test]
    fn names_read_back() {
        for codec in ALL {
            assert_eq!(codec.to_string().parse(), Ok(codec));
        }
        for text in ["", "fp8", "topk", "topk:0", "topk:1.5", "topk:x", "topk:NaN"] {
            assert!(text.parse::<Codec>().unwrap_err().contains("topk:0.01"), "{text}");
        }
    }

    #[test]
    fn sizes_are_what_was_promised() {
        let values: Vec<f32> = (0..1000).map(|i| (i as f32).sin()).collect();
        let size = |codec: Codec| codec.encode(&mut values.clone()).len();
        assert_eq!(ALL.map(size), [4000, 2000, 2004, 1004, 60, 6000]);
    }

    #[test]
    fn bytes_that_make_no_sense_are_refused() {
        let scaled = |scale: f32, rest: &[u8]| [&scale.to_le_bytes()[..], rest].concat();
        let entry = |index: u16| [&index.to_le_bytes()[..], &1f32.to_le_bytes()[..]].concat();
        let wrong = [
            (Encoding::F32, vec![0; 7]),
            (Encoding::Bf16, vec![0; 3]),
            (Encoding::F16, vec![0; 3]),
            (Encoding::F16, scaled(f32::NAN, &[0; 4])),
            (Encoding::Int8, scaled(1.0, &[0; 3])),
            (Encoding::Int8, scaled(f32::INFINITY, &[0; 2])),
            (Encoding::TopK, vec![0; 5]),
            (Encoding::TopK, entry(2)),
            (Encoding::TopK, [entry(1), entry(1)].concat()),
            (Encoding::TopK, [entry(1), entry(0)].concat()),
            (Encoding::TopK, [entry(0), entry(1), entry(2)].concat()),
        ];
        for (encoding, payload) in wrong {
            assert!(encoding.decode(&payload, 2).is_err(), "{encoding:?} {payload:?}");
        }
        assert_eq!(Encoding::TopK.decode(&entry(1), 2), Ok(vec![0.0, 1.0]));
    }

    proptest! {
        /// What comes out and what was lost make up what went in, as near as f32 can add.
        #[test]
        fn nothing_is_lost_without_being_told(
            values in proptest::collection::vec(-1e4f32..1e4, 1..300), scale in -30i32..20,
        ) {
            let values: Vec<f32> = values.iter().map(|value| value * 2f32.powi(scale)).collect();
            for codec in ALL {
                let mut lost = values.clone();
                let payload = codec.encode(&mut lost);
                let decoded = codec.encoding().decode(&payload, values.len()).unwrap();
                prop_assert_eq!(payload, codec.encode(&mut values.clone()));
                let most = largest(&values);
                for ((value, decoded), lost) in values.iter().zip(&decoded).zip(&lost) {
                    prop_assert!((value - (decoded + lost)).abs() <= most * 1e-6, "{codec}");
                    let allowed = match codec {
                        Codec::F32 => 0.0,
                        Codec::Bf16 => value.abs() / 256.0,
                        Codec::F16 => (value.abs() / 2048.0).max(most * 1e-6),
                        Codec::Int8 => most / 253.0,
                        Codec::TopK(_) => most,
                    };
                    prop_assert!(lost.abs() <= allowed, "{codec}: {value} became {decoded}");
                }
            }
        }

        /// What is fed back is not forgotten: a constant gradient arrives in the mean.
        #[test]
        fn errors_that_are_fed_back_even_out(values in proptest::collection::vec(-1f32..1.0, 2..40)) {
            for codec in [Codec::Int8, Codec::TopK(0.1)] {
                let (mut lost, mut sum) = (vec![0f32; values.len()], vec![0f64; values.len()]);
                let rounds = 400;
                for _ in 0..rounds {
                    lost.iter_mut().zip(&values).for_each(|(lost, value)| *lost += value);
                    let payload = codec.encode(&mut lost);
                    let decoded = codec.encoding().decode(&payload, values.len()).unwrap();
                    sum.iter_mut().zip(decoded).for_each(|(sum, value)| *sum += f64::from(value));
                }
                for (sum, value) in sum.iter().zip(&values) {
                    let mean = sum / f64::from(rounds);
                    prop_assert!((mean - f64::from(*value)).abs() < 0.12, "{codec}: {mean} for {value}");
                }
            }
        }
    }
}
