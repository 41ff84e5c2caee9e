//! Pictures' bytes as features: each channel brought to mean 0 and deviation 1 over the training part.

use super::DataError;

/// Training pictures that the scale is taken from, at most.
pub const MEASURED: usize = 2000;

/// How a channel's bytes become features.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Channel {
    mean: f32,
    factor: f32,
}

/// How pictures' bytes become features, channel by channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale(Vec<Channel>);

impl Scale {
    /// Measures channel-major pictures; `pictures` hands each to the function it is given.
    ///
    /// # Errors
    /// Those of `pictures`.
    pub fn measure(
        channels: usize,
        pictures: impl FnOnce(&mut dyn FnMut(&[u8])) -> Result<(), DataError>,
    ) -> Result<Scale, DataError> {
        // Whole numbers: the result depends on no order.
        let mut sums = vec![(0u64, 0u64, 0u64); channels];
        pictures(&mut |picture| {
            let plane = picture.len() / channels;
            for ((sum, squares, count), bytes) in sums.iter_mut().zip(picture.chunks_exact(plane.max(1))) {
                *sum += bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
                *squares += bytes.iter().map(|byte| u64::from(*byte).pow(2)).sum::<u64>();
                *count += bytes.len() as u64;
            }
        })?;
        let channel = |(sum, squares, count): (u64, u64, u64)| {
            let count = count.max(1) as f64;
            let mean = sum as f64 / count;
            let deviation = (squares as f64 / count - mean * mean).max(0.0).sqrt();
            Channel { mean: mean as f32, factor: if deviation > 0.0 { (1.0 / deviation) as f32 } else { 1.0 } }
        };
        Ok(Scale(sums.into_iter().map(channel).collect()))
    }

    /// Appends a picture's features.
    pub fn apply(&self, picture: &[u8], features: &mut Vec<f32>) {
        let plane = picture.len() / self.0.len().max(1);
        for (channel, bytes) in self.0.iter().zip(picture.chunks_exact(plane.max(1))) {
            features.extend(bytes.iter().map(|byte| (f32::from(*byte) - channel.mean) * channel.factor));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_have_mean_0_and_deviation_1() {
        let pictures = [[0u8, 4, 9, 9], [8, 4, 9, 9]];
        let scale = Scale::measure(2, |each| {
            pictures.iter().for_each(|picture| each(picture));
            Ok(())
        });
        let mut features = Vec::new();
        scale.unwrap().apply(&pictures[0], &mut features);
        let deviation = 8f32.sqrt();
        assert_eq!(features, [-4.0 / deviation, 0.0, 0.0, 0.0]);
    }
}
