//! Checkpoints on disk: what was written is read, and nothing else is.

use std::sync::Arc;

use convoy_proto::{
    blocks::BlockMap,
    ids::{Era, ServerId, ShardId, Step},
    loss_scale::LossScale,
    manifest::{Manifest, TensorRole},
};

use super::*;
use crate::core::kept::{Kept, Snapshot};

const WRITER: (Era, ServerId) = (Era(1), ServerId(2));

fn model() -> Manifest {
    let tensor = |name: &str, len: u64, role| (name.to_string(), vec![len], role);
    Manifest::new([
        tensor("a", 70_000, TensorRole::Trainable),
        tensor("b", 7, TensorRole::Trainable),
        tensor("c", 3, TensorRole::Buffer),
    ])
    .unwrap()
}

/// A checkpoint of two servers in a new directory.
fn written(directory: &Path) -> (CheckpointManifest, Vec<Snapshot>) {
    let map = BlockMap::new(&model(), 2);
    let values = |seed: u64, len: u32| Arc::new((0..len).map(|i| (i as f32 + seed as f32).sin()).collect::<Vec<_>>());
    let snapshots: Vec<_> = (0..2)
        .map(|shard| {
            let blocks = map.of_shard(ShardId(shard)).map(|block| {
                let is_trainable = block.role == TensorRole::Trainable;
                let state = [11, 13].map(|seed| values(block.id.0 * seed, block.len).to_vec());
                Kept {
                    block: block.id,
                    parameters: values(block.id.0, block.len),
                    average: is_trainable.then(|| values(block.id.0 * 7, block.len)),
                    state: Arc::new(if is_trainable { state.to_vec() } else { Vec::new() }),
                    updates: if is_trainable { 5 } else { 0 },
                }
            });
            Snapshot { commit: Step(6), loss_scale: LossScale::new(1.0), blocks: blocks.collect() }
        })
        .collect();
    let parts = snapshots.iter().filter_map(|snapshot| part::write(directory, WRITER, snapshot).unwrap());
    let manifest = CheckpointManifest {
        format: manifest::FORMAT,
        run: "r".into(),
        model: "m".into(),
        step: 6,
        commits: 6,
        era: 1,
        loss_scale: 1.0,
        clean_steps: 0,
        files: parts.map(Into::into).collect(),
        progress: serde_json::json!({ "samples": 768 }),
    };
    complete(directory, &manifest).unwrap();
    (manifest, snapshots)
}

#[test]
fn what_was_written_is_read_by_any_number_of_servers() {
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().join("checkpoints/step-6");
    let (manifest, snapshots) = written(&directory);
    assert_eq!(open(&directory).unwrap(), manifest);
    let all: Vec<_> = snapshots.iter().flat_map(|snapshot| snapshot.blocks.clone()).collect();
    for servers in 1..5 {
        let map = BlockMap::new(&model(), servers);
        let read = (0..servers).flat_map(|shard| {
            let snapshot = part::read(&directory, &manifest, map.of_shard(ShardId(shard))).unwrap();
            assert_eq!((snapshot.commit, snapshot.loss_scale), (Step(6), LossScale::new(1.0)));
            snapshot.blocks
        });
        assert_eq!(read.collect::<Vec<_>>(), all, "{servers} servers");
    }
    let mut names: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(
        names,
        ["blocks-0-0.era-1.server-2.safetensors", "blocks-1-3.era-1.server-2.safetensors", "manifest.json"]
    );
}

#[test]
fn a_manifest_torn_anywhere_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let (manifest, _) = written(dir.path());
    let text = fs::read(dir.path().join(MANIFEST)).unwrap();
    assert_eq!(CheckpointManifest::from_text(std::str::from_utf8(&text).unwrap()), Ok(manifest));
    for at in 0..text.len() {
        fs::write(dir.path().join(MANIFEST), &text[..at]).unwrap();
        assert!(open(dir.path()).is_err(), "torn at {at}");
        let mut flipped = text.clone();
        flipped[at] ^= 1;
        fs::write(dir.path().join(MANIFEST), &flipped).unwrap();
        assert!(open(dir.path()).is_err(), "flipped at {at}");
    }
    fs::remove_file(dir.path().join(MANIFEST)).unwrap();
    assert!(matches!(open(dir.path()), Err(CheckpointError::Disk { what: "read", .. })));
}

#[test]
fn a_file_torn_or_changed_anywhere_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (manifest, _) = written(dir.path());
    let path = dir.path().join(&manifest.files[1].file);
    let bytes = fs::read(&path).unwrap();
    let map = BlockMap::new(&model(), 1);
    let read = || part::read(dir.path(), &manifest, map.of_shard(ShardId(0)));
    for at in (0..bytes.len()).step_by(97) {
        fs::write(&path, &bytes[..at]).unwrap();
        let torn = read().unwrap_err().to_string();
        assert!(torn.contains("blocks-1-3") && torn.contains("the manifest says"), "torn at {at}: {torn}");
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x40;
        fs::write(&path, &flipped).unwrap();
        assert!(read().unwrap_err().to_string().contains("hash"), "flipped at {at}");
    }
    fs::remove_file(&path).unwrap();
    assert!(read().unwrap_err().to_string().starts_with("cannot read"));
    let less = CheckpointManifest { files: manifest.files[..1].to_vec(), ..manifest.clone() };
    let error = part::read(dir.path(), &less, map.of_shard(ShardId(0))).unwrap_err();
    assert!(error.to_string().contains("no file has block 1"), "{error}");
}

#[test]
fn a_full_disk_leaves_no_file() {
    // A device that is always full stands for the disk.
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("blocks-0-0.era-1.server-2.safetensors");
    std::os::unix::fs::symlink("/dev/full", &target).unwrap();
    let kept = Kept {
        block: convoy_proto::ids::BlockId(0),
        parameters: Arc::new(vec![1.0; 70_000]),
        average: None,
        state: Arc::default(),
        updates: 0,
    };
    let snapshot = Snapshot { commit: Step(1), loss_scale: LossScale::new(1.0), blocks: vec![kept] };
    let error = part::write(dir.path(), WRITER, &snapshot).unwrap_err();
    assert!(error.to_string().contains("No space left on device"), "{error}");
    assert!(!target.exists() && fs::symlink_metadata(&target).is_err());
}
