//! The values of one tensor on the host: in memory of this process, in a device's buffer, or in memory that others share.
//!
//! Whoever reads sees `[f32]` and copies nothing. Whoever writes to values that are shared gets a copy of its own first.

use std::ops::{Deref, DerefMut};

use burn::tensor::{AllocationProperty, Bytes, DType, TensorData};
use convoy_proto::sum;

/// The values of one tensor.
pub struct Values(Store);

enum Store {
    /// In a vector.
    Own(Vec<f32>),
    /// As a device's buffer was read.
    Read(Bytes),
    /// In memory that stays as it is for as long as this is held; aligned for f32.
    Lent(bytes::Bytes),
}

impl Values {
    /// Values that are lent: little-endian f32. What is not aligned is copied.
    pub fn lent(bytes: bytes::Bytes) -> Values {
        match bytemuck::try_cast_slice::<u8, f32>(&bytes) {
            Ok(_) => Values(Store::Lent(bytes)),
            Err(_) => copied(&bytes),
        }
    }

    /// Values that were read from a device, of any type of numbers.
    pub fn read(data: TensorData) -> Values {
        let data = if data.dtype == DType::F32 { data } else { data.convert::<f32>() };
        let is_aligned = bytemuck::try_cast_slice::<u8, f32>(&data.bytes).is_ok();
        if is_aligned { Values(Store::Read(data.bytes)) } else { copied(&data.bytes) }
    }

    /// A tensor's data of this shape: no copy is made.
    pub fn into_data<const D: usize>(self, shape: [usize; D]) -> TensorData {
        match self.0 {
            Store::Own(values) => TensorData::new(values, shape),
            Store::Read(bytes) => TensorData::from_bytes(bytes, shape, DType::F32),
            Store::Lent(bytes) => {
                TensorData::from_bytes(Bytes::from_shared(bytes, AllocationProperty::Other), shape, DType::F32)
            }
        }
    }
}

fn copied(bytes: &[u8]) -> Values {
    let mut values = vec![0.0; bytes.len() / 4];
    sum::read_payload(&mut values, bytes);
    values.into()
}

impl Default for Values {
    /// None.
    fn default() -> Self {
        Vec::new().into()
    }
}

impl From<Vec<f32>> for Values {
    fn from(values: Vec<f32>) -> Self {
        Values(Store::Own(values))
    }
}

impl FromIterator<f32> for Values {
    fn from_iter<I: IntoIterator<Item = f32>>(values: I) -> Self {
        values.into_iter().collect::<Vec<_>>().into()
    }
}

impl Deref for Values {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &self.0 {
            Store::Own(values) => values,
            Store::Read(bytes) => bytemuck::cast_slice(bytes),
            Store::Lent(bytes) => bytemuck::cast_slice(bytes),
        }
    }
}

impl DerefMut for Values {
    fn deref_mut(&mut self) -> &mut [f32] {
        if let Store::Lent(bytes) = &self.0 {
            self.0 = Store::Own(bytemuck::cast_slice(bytes).to_vec());
        }
        match &mut self.0 {
            Store::Own(values) => values,
            Store::Read(bytes) => bytemuck::cast_slice_mut(bytes),
            Store::Lent(_) => unreachable!("what is lent was copied above"),
        }
    }
}

impl Clone for Values {
    fn clone(&self) -> Self {
        match &self.0 {
            Store::Lent(bytes) => Values(Store::Lent(bytes.clone())),
            Store::Own(_) | Store::Read(_) => self.to_vec().into(),
        }
    }
}

impl PartialEq for Values {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(values: &[f32]) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(bytemuck::cast_slice(values))
    }

    #[test]
    fn whatever_holds_them_they_are_the_same_numbers() {
        let numbers = [1.5f32, -2.0, 0.0, 7.25];
        let shifted = bytes::Bytes::from([&[0u8][..], bytemuck::cast_slice(&numbers)].concat()).slice(1..);
        let all = [
            Values::from(numbers.to_vec()),
            Values::lent(bytes(&numbers)),
            Values::lent(shifted),
            Values::read(TensorData::new(numbers.to_vec(), [4])),
            Values::read(TensorData::new(numbers.map(f64::from).to_vec(), [4])),
        ];
        for values in all {
            assert_eq!((&*values, &*values.clone()), (&numbers[..], &numbers[..]));
            assert_eq!(values.into_data([2, 2]).to_vec::<f32>().unwrap(), numbers);
        }
    }

    #[test]
    fn what_is_lent_is_not_written_to() {
        let lent = bytes(&[1.0, 2.0]);
        let mut values = Values::lent(lent.clone());
        values[0] = 9.0;
        assert_eq!((&values[..], &Values::lent(lent)[..]), (&[9.0, 2.0][..], &[1.0, 2.0][..]));
    }
}
