//! A file of a checkpoint: a run of blocks in the safetensors format.
//!
//! Per block `B` it has `parameters.B`, `average.B` where an average is kept, and `state0.B`, `state1.B` and so on as the
//! optimizer needs, all f32; `updates` counts the optimizer's updates of each block, u64.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
};

use convoy_proto::{
    blocks::Block,
    ids::{BlockId, Era, ServerId, Step},
    loss_scale::LossScale,
    manifest::TensorRole,
    messages::Part,
    sum,
};
use safetensors::{Dtype, SafeTensorError, SafeTensors, tensor::TensorView};
use sha2::{Digest, Sha256};

use super::{CheckpointError, CheckpointManifest, Place, damaged, manifest::BlockFile};
use crate::core::{
    kept::{Kept, Snapshot},
    versions::Version,
};

/// The file's name: no two writers, and no two eras, have the same.
pub fn file_name(first: BlockId, last: BlockId, (era, server): (Era, ServerId)) -> String {
    format!("blocks-{first}-{last}.era-{era}.server-{server}.safetensors")
}

/// Writes a shard's snapshot to the checkpoint of a name, to stay there; nothing for a shard without blocks.
///
/// # Errors
/// The disk's or the place's; then no file is left.
pub fn write(
    (place, name): (&dyn Place, &str),
    writer: (Era, ServerId),
    snapshot: &Snapshot,
) -> Result<Option<Part>, CheckpointError> {
    let (Some(first), Some(last)) = (snapshot.blocks.first(), snapshot.blocks.last()) else { return Ok(None) };
    let file = file_name(first.block, last.block, writer);
    let path = place.staged(name, &file)?;
    let (bytes, sha256) = write_blocks(&path, snapshot).map_err(|problem| {
        let _ = fs::remove_file(&path);
        CheckpointError::Disk { what: "write", path: path.clone(), problem }
    })?;
    place.keep(name, &file)?;
    Ok(Some(Part { file, first_block: first.block.0, blocks: snapshot.blocks.len() as u64, bytes, sha256 }))
}

fn write_blocks(path: &Path, snapshot: &Snapshot) -> io::Result<(u64, Vec<u8>)> {
    let broken = |error: SafeTensorError| match error {
        SafeTensorError::IoError(problem) => problem,
        other => io::Error::other(other.to_string()),
    };
    let updates: Vec<u8> = snapshot.blocks.iter().flat_map(|kept| kept.updates.to_le_bytes()).collect();
    let counts = TensorView::new(Dtype::U64, vec![snapshot.blocks.len()], &updates).map_err(broken)?;
    let mut views = vec![("updates".to_string(), counts)];
    for kept in &snapshot.blocks {
        for (name, values) in named(kept) {
            let view = TensorView::new(Dtype::F32, vec![values.len()], sum::payload_of(values)).map_err(broken)?;
            views.push((name, view));
        }
    }
    let about = HashMap::from([("format".to_string(), "convoy".to_string())]);
    safetensors::serialize_to_file(views, Some(about), path).map_err(broken)?;
    let mut file = File::open(path)?;
    file.sync_all()?;
    let mut hash = Sha256::new();
    let bytes = io::copy(&mut file, &mut hash)?;
    Ok((bytes, hash.finalize().to_vec()))
}

/// The vectors of a block, and their names.
fn named(kept: &Kept) -> impl Iterator<Item = (String, &[f32])> {
    let block = kept.block;
    let state = kept.state.iter().enumerate().map(move |(slot, values)| (format!("state{slot}.{block}"), &values[..]));
    let average = kept.average.iter().map(move |average| (format!("average.{block}"), &average[..]));
    std::iter::once((format!("parameters.{block}"), &kept.parameters[..])).chain(average).chain(state)
}

/// Reads some blocks, ascending, of a checkpoint.
///
/// # Errors
/// A file that cannot be read, or is not the one that was written.
pub fn read(
    (place, name): (&dyn Place, &str),
    manifest: &CheckpointManifest,
    blocks: impl Iterator<Item = Block>,
) -> Result<Snapshot, CheckpointError> {
    let mut wanted = blocks.peekable();
    let mut kept = Vec::new();
    for file in &manifest.files {
        let is_here = |block: &Block| (file.first_block..file.first_block + file.blocks).contains(&block.id.0);
        if !wanted.peek().is_some_and(is_here) {
            continue;
        }
        let path = format!("{}/{}", place.of(name), file.file);
        let bytes = place.read(name, &file.file)?;
        let is_it = file.compare(bytes.len() as u64, Some(&Sha256::digest(&bytes)));
        is_it.map_err(|problem| damaged(&path, problem))?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| damaged(&path, error.to_string()))?;
        while let Some(block) = wanted.next_if(is_here) {
            kept.push(one(&tensors, file, &block).map_err(|problem| damaged(&path, problem))?);
        }
    }
    if let Some(block) = wanted.next() {
        return Err(damaged(place.of(name), format!("no file has block {}", block.id)));
    }
    let loss_scale = LossScale::new(manifest.loss_scale).at(manifest.loss_scale, manifest.clean_steps);
    Ok(Snapshot { commit: Step(manifest.commits), loss_scale, blocks: kept })
}

fn held(values: Vec<f32>) -> Version {
    Arc::new(values.into())
}

fn one(tensors: &SafeTensors<'_>, file: &BlockFile, block: &Block) -> Result<Kept, String> {
    let id = block.id;
    let find = |name: String| -> Result<Option<Vec<f32>>, String> {
        let Ok(view) = tensors.tensor(&name) else { return Ok(None) };
        if view.dtype() != Dtype::F32 || view.shape() != [block.len as usize] {
            let (dtype, shape, len) = (view.dtype(), view.shape(), block.len);
            return Err(format!("`{name}` is {dtype:?} {shape:?}, the model's is F32 [{len}]"));
        }
        let mut values = vec![0.0; block.len as usize];
        sum::read_payload(&mut values, view.data());
        Ok(Some(values))
    };
    let parameters: Version =
        find(format!("parameters.{id}"))?.map(held).ok_or_else(|| format!("it has no `parameters.{id}`"))?;
    let average = find(format!("average.{id}"))?.map(held);
    let mut state = Vec::new();
    while let Some(values) = find(format!("state{}.{id}", state.len()))? {
        state.push(values);
    }
    let updates = tensors.tensor("updates").map_err(|error| error.to_string())?;
    let at = (id.0 - file.first_block) as usize * 8;
    let count = updates.data().get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    let updates = match (count, block.role) {
        (Some(count), _) => count,
        (None, TensorRole::Trainable) => return Err(format!("`updates` lacks block {id}")),
        (None, _) => 0,
    };
    Ok(Kept { block: id, parameters, average, state: Arc::new(state), updates })
}
