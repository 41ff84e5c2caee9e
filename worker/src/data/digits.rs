//! Generated digits: 28×28 pictures drawn from strokes, each a pure function of (seed, part, index).
//!
//! A digit's strokes are bent, sheared, turned, stretched and moved at random, drawn with a random pen over random
//! clutter, and covered with noise. So a linear model fails on many while a small convolutional network learns them.
//! Pictures are drawn when they are first read and kept as bytes.

use std::{
    f32::consts::{PI, TAU},
    sync::{Arc, OnceLock},
};

use convoy_proto::order::{self, Purpose};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use super::{DataError, DataInfo, Dataset, Form, HostBatch, Part, Request};

const SIDE: usize = 28;
const PIXELS: usize = SIDE * SIDE;
const TRAIN: u32 = 20_000;
const TEST: u32 = 4_000;
/// Raised whenever a picture changes.
const VERSION: u32 = 1;

type Picture = [u8; PIXELS];
type Point = (f32, f32);

struct Digits {
    seed: u64,
    info: DataInfo,
    train: Vec<OnceLock<Box<Picture>>>,
    test: Vec<OnceLock<Box<Picture>>>,
}

/// Opens `digits` or `digits:SEED`.
pub fn open(request: &Request<'_>) -> Result<Arc<dyn Dataset>, DataError> {
    let argument = request.argument;
    let seed = argument.map_or(Ok(0), str::parse::<u64>).map_err(|_| DataError::Spec {
        spec: format!("digits:{}", argument.unwrap_or_default()),
        problem: "the part after the colon is the seed, a whole number".into(),
    })?;
    let info = DataInfo {
        about: format!("digits: {TRAIN} generated pictures to train on, {TEST} held out, seed {seed}"),
        form: Form::Classes { shape: [1, SIDE, SIDE], classes: 10 },
        train: TRAIN,
        test: TEST,
        class_names: Vec::new(),
        fingerprint: Sha256::digest(format!("digits {VERSION} {TRAIN} {TEST} {seed}")).to_vec(),
    };
    let empty = |n| std::iter::repeat_with(OnceLock::new).take(n as usize).collect();
    Ok(Arc::new(Digits { seed, info, train: empty(TRAIN), test: empty(TEST) }))
}

impl Dataset for Digits {
    fn info(&self) -> &DataInfo {
        &self.info
    }

    fn read(&self, part: Part, index: u32, batch: &mut HostBatch) -> Result<(), DataError> {
        let (cells, purpose) = match part {
            Part::Train => (&self.train, Purpose::TrainData),
            Part::Test => (&self.test, Purpose::TestData),
        };
        // Ten in a row hold each digit once, so every part is balanced.
        let digit = index % 10;
        let picture = cells[index as usize].get_or_init(|| Box::new(draw(digit, self.seed, purpose, index)));
        batch.features.extend(picture.iter().map(|byte| f32::from(*byte) / 255.0));
        batch.label(digit);
        Ok(())
    }
}

/// A generator with the distributions that drawing needs.
struct Dice(ChaCha8Rng);

impl Dice {
    fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * order::unit(&mut self.0) as f32
    }

    fn chance(&mut self, probability: f32) -> bool {
        self.between(0.0, 1.0) < probability
    }

    /// About normal: the sum of four uniform numbers (Irwin and Hall), scaled to deviation 1.
    fn normal(&mut self) -> f32 {
        (0..4).map(|_| self.between(-1.0, 1.0)).sum::<f32>() * (3.0f32 / 4.0).sqrt()
    }
}

fn arc((cx, cy): Point, (rx, ry): Point, from: f32, to: f32) -> Vec<Point> {
    const PIECES: usize = 12;
    let angle = |i: usize| from + (to - from) * i as f32 / PIECES as f32;
    (0..=PIECES).map(|i| (cx + rx * angle(i).cos(), cy + ry * angle(i).sin())).collect()
}

/// The strokes of a digit in the unit square, x to the right and y down; some digits are written in two ways.
fn strokes(digit: u32, variant: bool) -> Vec<Vec<Point>> {
    match (digit, variant) {
        (0, _) => vec![arc((0.5, 0.5), (0.27, 0.4), 0.0, TAU)],
        (1, false) => vec![vec![(0.36, 0.28), (0.53, 0.1), (0.53, 0.9)]],
        (1, true) => vec![vec![(0.36, 0.28), (0.53, 0.1), (0.53, 0.9)], vec![(0.34, 0.9), (0.72, 0.9)]],
        (2, _) => {
            let mut stroke = arc((0.5, 0.33), (0.26, 0.23), -PI, 0.5);
            stroke.extend([(0.24, 0.9), (0.78, 0.9)]);
            vec![stroke]
        }
        (3, _) => vec![arc((0.46, 0.3), (0.26, 0.2), -2.6, PI / 2.0), arc((0.46, 0.7), (0.29, 0.2), -PI / 2.0, 2.6)],
        (4, false) => vec![vec![(0.62, 0.9), (0.62, 0.1), (0.22, 0.63), (0.82, 0.63)]],
        (4, true) => vec![vec![(0.3, 0.12), (0.26, 0.55), (0.8, 0.55)], vec![(0.66, 0.12), (0.64, 0.9)]],
        (5, _) => {
            let mut stroke = vec![(0.74, 0.1), (0.34, 0.1), (0.3, 0.46)];
            stroke.extend(arc((0.47, 0.66), (0.27, 0.24), -2.2, 2.5));
            vec![stroke]
        }
        (6, _) => vec![arc((0.72, 0.66), (0.45, 0.56), -PI / 2.0, -PI), arc((0.5, 0.68), (0.23, 0.22), 0.0, TAU)],
        (7, false) => vec![vec![(0.22, 0.12), (0.78, 0.12), (0.42, 0.9)]],
        (7, true) => vec![vec![(0.22, 0.12), (0.78, 0.12), (0.42, 0.9)], vec![(0.38, 0.5), (0.74, 0.5)]],
        (8, _) => vec![arc((0.5, 0.3), (0.2, 0.19), 0.0, TAU), arc((0.5, 0.7), (0.25, 0.21), 0.0, TAU)],
        _ => vec![arc((0.5, 0.33), (0.23, 0.22), 0.0, TAU), vec![(0.73, 0.33), (0.7, 0.6), (0.6, 0.9)]],
    }
}

/// A random warp of the unit square onto the picture.
struct Warp {
    matrix: [f32; 4],
    shift: Point,
    bend: [(f32, f32, f32); 2],
}

impl Warp {
    fn random(dice: &mut Dice) -> Warp {
        let (turn, shear) = (dice.between(-0.35, 0.35), dice.between(-0.35, 0.35));
        let (wide, high) = (dice.between(0.6, 1.0), dice.between(0.6, 1.0));
        let (sin, cos) = turn.sin_cos();
        let matrix = [cos * wide, (shear * cos - sin) * high, sin * wide, (shear * sin + cos) * high];
        let shift = (dice.between(-0.15, 0.15), dice.between(-0.15, 0.15));
        let mut bend = || (dice.between(0.0, 0.05), dice.between(0.5, 1.6), dice.between(0.0, TAU));
        Warp { matrix, shift, bend: [bend(), bend()] }
    }

    fn apply(&self, (x, y): Point) -> Point {
        let [(ax, fx, px), (ay, fy, py)] = self.bend;
        let (x, y) = (x + ax * (TAU * fx * y + px).sin() - 0.5, y + ay * (TAU * fy * x + py).sin() - 0.5);
        let [a, b, c, d] = self.matrix;
        let place = |v: f32| v * SIDE as f32;
        (place(a * x + b * y + self.shift.0 + 0.5), place(c * x + d * y + self.shift.1 + 0.5))
    }
}

/// Draws a line with a round pen: brightness falls from full to none over one pixel at its edge.
fn line(canvas: &mut [f32; PIXELS], (ax, ay): Point, (bx, by): Point, radius: f32, brightness: f32) {
    let reach = radius + 1.0;
    let span = |a: f32, b: f32| {
        let low = (a.min(b) - reach).floor().clamp(0.0, SIDE as f32) as usize;
        let high = (a.max(b) + reach).ceil().clamp(0.0, SIDE as f32) as usize;
        low..high
    };
    let (dx, dy) = (bx - ax, by - ay);
    let length_squared = (dx * dx + dy * dy).max(1e-12);
    for row in span(ay, by) {
        for column in span(ax, bx) {
            let (px, py) = (column as f32 + 0.5 - ax, row as f32 + 0.5 - ay);
            let along = ((px * dx + py * dy) / length_squared).clamp(0.0, 1.0);
            let (ox, oy) = (px - along * dx, py - along * dy);
            let distance = (ox * ox + oy * oy).sqrt();
            let ink = brightness * (radius + 0.5 - distance).clamp(0.0, 1.0);
            let pixel = &mut canvas[row * SIDE + column];
            *pixel = pixel.max(ink);
        }
    }
}

fn draw(digit: u32, seed: u64, purpose: Purpose, index: u32) -> Picture {
    let mut dice = Dice(order::stream(seed, purpose, u64::from(index), 0));
    let mut canvas = [0f32; PIXELS];
    clutter(&mut canvas, &mut dice);
    let warp = Warp::random(&mut dice);
    let (radius, brightness) = (dice.between(0.6, 1.7), dice.between(0.6, 1.0));
    let variant = dice.chance(0.4);
    for stroke in strokes(digit, variant) {
        let points: Vec<Point> = stroke.into_iter().map(|point| warp.apply(point)).collect();
        for pair in points.windows(2) {
            line(&mut canvas, pair[0], pair[1], radius, brightness);
        }
    }
    let noise = dice.between(0.0, 0.16);
    canvas.map(|ink| ((ink + noise * dice.normal()).clamp(0.0, 1.0) * 255.0).round() as u8)
}

/// A few faint strokes that mean nothing.
fn clutter(canvas: &mut [f32; PIXELS], dice: &mut Dice) {
    let side = SIDE as f32;
    let count = order::below(&mut dice.0, 4);
    for _ in 0..count {
        let from = (dice.between(0.0, side), dice.between(0.0, side));
        let (angle, length) = (dice.between(0.0, TAU), dice.between(2.0, 9.0));
        let to = (from.0 + length * angle.cos(), from.1 + length * angle.sin());
        let (radius, brightness) = (dice.between(0.4, 1.0), dice.between(0.2, 0.6));
        line(canvas, from, to, radius, brightness);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{open_spec, refusal},
        *,
    };

    #[test]
    fn a_picture_is_a_function_of_seed_part_and_index() {
        let read = |spec: &str, part, index| {
            let batch = HostBatch::read(&*open_spec(spec, ""), part, [index]).unwrap();
            (batch.labels[0], batch.features)
        };
        let one = read("digits", Part::Train, 17);
        assert_eq!((one.0, one.1.len()), (7, 784));
        assert_eq!(one, read("digits:0", Part::Train, 17));
        assert_ne!(one.1, read("digits:1", Part::Train, 17).1);
        assert_ne!(one.1, read("digits", Part::Test, 17).1);
        assert_ne!(one.1, read("digits", Part::Train, 27).1);
    }

    #[test]
    fn every_digit_leaves_ink() {
        for digit in 0..10 {
            for index in 0..50 {
                let picture = draw(digit, 3, Purpose::TrainData, index);
                let ink = picture.iter().filter(|byte| **byte > 120).count();
                assert!((15..500).contains(&ink), "digit {digit} sample {index} has {ink} bright pixels");
            }
        }
    }

    #[test]
    fn a_bad_seed_is_refused() {
        let error = refusal("digits:x", "");
        assert_eq!(error, "`data` = \"digits:x\": the part after the colon is the seed, a whole number");
    }
}
