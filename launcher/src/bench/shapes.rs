//! The models and data that training is measured with: of the sizes that others publish figures for.

use std::{fs, path::Path};

use convoy_proto::order::{Purpose, stream};
use rand_chacha::rand_core::RngCore;

use crate::outcome::Failure;

/// Pictures and windows that there are to train on.
const PICTURES: u32 = 8192;
const TEXT_BYTES: usize = 1 << 20;

/// A task at a fixed size.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The task.
    pub task: &'static str,
    /// Its parameters.
    pub parameters: u64,
    /// Samples that a worker computes in a step.
    pub batch: u32,
    /// Configuration keys.
    settings: &'static [&'static str],
}

/// All shapes.
pub const SHAPES: [Shape; 3] = [
    Shape { task: "mlp", parameters: 669_706, batch: 128, settings: &["model.hidden=[512,512]"] },
    Shape { task: "cnn", parameters: 421_642, batch: 64, settings: &[] },
    Shape {
        task: "gpt",
        parameters: 4_902_912,
        batch: 8,
        settings: &["model.layers=6", "model.width=256", "model.heads=8", "model.context=128"],
    },
];

/// The shape of a task.
///
/// # Errors
/// There is none.
pub fn find(task: &str) -> Result<Shape, Failure> {
    let known: Vec<_> = SHAPES.iter().map(|shape| shape.task).collect();
    let found = SHAPES.into_iter().find(|shape| shape.task == task);
    found.ok_or_else(|| Failure::Usage(format!("--tasks {task}: there are {}", known.join(", "))))
}

impl Shape {
    /// The same with another number of samples a worker and step, if one is given.
    pub fn with_batch(self, batch: Option<u32>) -> Shape {
        Shape { batch: batch.unwrap_or(self.batch), ..self }
    }

    /// The flags of a training with this shape and the data in `place`.
    pub fn flags(&self, place: &Path) -> Vec<String> {
        let data = match self.task {
            "gpt" => format!("text:{}", place.join("text.txt").display()),
            _ => format!("mnist:{}", place.display()),
        };
        let words = ["--task", self.task, "--data", &data, "--optimizer", "sgd", "--lr", "0.01"].map(String::from);
        let settings = self.settings.iter().flat_map(|setting| ["--set".to_string(), (*setting).to_string()]);
        words.into_iter().chain(settings).collect()
    }
}

/// Writes data for all shapes into `place`: pictures and text of random bytes.
///
/// # Errors
/// The disk.
pub fn write_data(place: &Path) -> Result<(), Failure> {
    let mut random = stream(0, Purpose::TrainData, 0, 0);
    let mut bytes = |count: usize| {
        let mut bytes = vec![0; count];
        random.fill_bytes(&mut bytes);
        bytes
    };
    let header = |kind: u8, sizes: &[u32]| {
        let sizes = sizes.iter().flat_map(|size| size.to_be_bytes());
        [0, 0, 8, kind].into_iter().chain(sizes).collect::<Vec<u8>>()
    };
    let pictures = [header(3, &[PICTURES, 28, 28]), bytes(PICTURES as usize * 784)].concat();
    let classes: Vec<u8> = bytes(PICTURES as usize).iter().map(|byte| byte % 10).collect();
    // Printable, so that it is text.
    let text: Vec<u8> = bytes(TEXT_BYTES).iter().map(|byte| b' ' + byte % 95).collect();
    let files = [
        ("train-images-idx3-ubyte", pictures),
        ("train-labels-idx1-ubyte", [header(1, &[PICTURES]), classes].concat()),
        ("text.txt", text),
    ];
    for (name, content) in files {
        let path = place.join(name);
        fs::write(&path, content).map_err(|problem| {
            Failure::Environment(format!("cannot write {} for measurements: {problem}", path.display()))
        })?;
    }
    Ok(())
}
