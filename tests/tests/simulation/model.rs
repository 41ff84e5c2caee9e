//! What a case is made of: messages, and the slices of its data.

use convoy_proto::{
    config::{Config, layers::Layers},
    ids::{Era, Member, SliceId},
    messages::{Accumulated, ClusterView, GradientBlock, PushHeader, SliceHeader, Staged, Verdict},
};

use convoy_server::core::kept::Snapshot;

use crate::{EVAL_EVERY, SLICES, STEPS, WORKERS};

/// Something on its way.
#[derive(Clone, Debug)]
pub enum Message {
    /// A block of a push, or its header alone, to a server.
    Push(u32, PushHeader, Option<GradientBlock>),
    /// From a server to the coordinator, and back.
    Decide(Member, Accumulated),
    Decided(At, Verdict),
    Stage(Member, Staged),
    Chosen(At, Verdict),
    Dropped(At, PushHeader),
    /// A snapshot on its way to the disk.
    Save(At, Snapshot),
    /// A server that takes up an era.
    Restore(u32, Era),
    View(u32, ClusterView),
}

/// A server's process in an era.
pub type At = (Member, Era);

/// The configuration of a case.
pub fn config(mode: &str) -> Config {
    let text = format!(
        "name = 'r'\nworkers = {WORKERS}\nservers = 2\nslices = {SLICES}\nsteps = {STEPS}\neval_every = {EVAL_EVERY}\nmin_workers = 1\ncheckpoint.every = 2\n{mode}"
    );
    Layers::new().toml("test", &text).unwrap().raw().unwrap().resolve(1).unwrap()
}

/// The gradient of the slice at a place of the data, `len` elements from `start`.
pub fn gradient(place: (u64, u32), len: usize, start: u64) -> Vec<f32> {
    let (step, slice) = place;
    (0..len).map(|i| ((start + i as u64) as f32 * 0.3 + slice as f32 * 1.7 + step as f32).sin()).collect()
}

/// What the slice at a place of the data weighs.
pub fn weight(place: (u64, u32)) -> f64 {
    // Some slices are empty, and no two weigh the same.
    if (place.0 + u64::from(place.1)).is_multiple_of(5) { 0.0 } else { 1.0 + f64::from(place.1) }
}

/// The loss of a slice of the held-out data.
pub fn score_of(slice: SliceId) -> f64 {
    f64::from(slice.0 + 1)
}

/// The header of a push's slice, which is the one at a place of the data.
pub fn header_of(slice: u32, place: (u64, u32)) -> SliceHeader {
    SliceHeader { slice: SliceId(slice), weight: weight(place), loss_sum: weight(place) * 0.5, finite: true }
}
