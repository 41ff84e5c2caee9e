//! Checkpoints on disk: what was written is read, and nothing else is.

use std::{fs, path::Path, sync::Arc};

use convoy_proto::{
    blocks::BlockMap,
    ids::{Era, ServerId, ShardId, Step},
    loss_scale::LossScale,
    manifest::{Manifest, TensorRole},
};

use object_store::local::LocalFileSystem;

use super::*;
use crate::core::kept::{Kept, Snapshot};

const WRITER: (Era, ServerId) = (Era(1), ServerId(2));
const NAME: &str = "step-6";

/// A directory, and buckets: in memory, and in a directory as an object store keeps it.
fn places(dir: &Path) -> [Box<dyn Place>; 3] {
    fs::create_dir(dir.join("store")).unwrap();
    let store = Arc::new(LocalFileSystem::new_with_prefix(dir.join("store")).unwrap());
    [
        Box::new(Directory::new(dir.join("checkpoints"))),
        Box::new(Bucket::in_memory(&dir.join("staged"))),
        Box::new(Bucket::of_store(store, &dir.join("staged too"))),
    ]
}

fn model() -> Manifest {
    let tensor = |name: &str, len: u64, role| (name.to_string(), vec![len], role);
    Manifest::new([
        tensor("a", 70_000, TensorRole::Trainable),
        tensor("b", 7, TensorRole::Trainable),
        tensor("c", 3, TensorRole::Buffer),
    ])
    .unwrap()
}

/// A checkpoint of two servers.
fn written(place: &dyn Place) -> (CheckpointManifest, Vec<Snapshot>) {
    let map = BlockMap::new(&model(), 2);
    let values = |seed: u64, len: u32| {
        let values: Vec<f32> = (0..len).map(|i| (i as f32 + seed as f32).sin()).collect();
        Arc::new(convoy_proto::shared::Buffer::from(values))
    };
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
    let parts = snapshots.iter().filter_map(|snapshot| part::write((place, NAME), WRITER, snapshot).unwrap());
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
    complete(place, NAME, &manifest).unwrap();
    (manifest, snapshots)
}

#[test]
fn what_was_written_is_read_by_any_number_of_servers() {
    let dir = tempfile::tempdir().unwrap();
    for place in places(dir.path()) {
        let place = &*place;
        let (manifest, snapshots) = written(place);
        assert_eq!(open(place, NAME).unwrap(), manifest);
        let all: Vec<_> = snapshots.iter().flat_map(|snapshot| snapshot.blocks.clone()).collect();
        for servers in 1..5 {
            let map = BlockMap::new(&model(), servers);
            let read = (0..servers).flat_map(|shard| {
                let snapshot = part::read((place, NAME), &manifest, map.of_shard(ShardId(shard))).unwrap();
                assert_eq!((snapshot.commit, snapshot.loss_scale), (Step(6), LossScale::new(1.0)));
                snapshot.blocks
            });
            assert_eq!(read.collect::<Vec<_>>(), all, "{servers} servers at {}", place.root());
        }
        let mut files: Vec<_> = place.files(NAME).unwrap().into_iter().map(|(file, _)| file).collect();
        files.sort();
        assert_eq!(
            files,
            ["blocks-0-0.era-1.server-2.safetensors", "blocks-1-3.era-1.server-2.safetensors", "manifest.json"]
        );
        assert_eq!(place.names().unwrap(), [NAME]);
    }
    let left = |name: &str| fs::read_dir(dir.path().join(name)).unwrap().count();
    assert_eq!((left("staged"), left("staged too")), (0, 0), "nothing waits any more");
}

#[test]
fn a_manifest_torn_anywhere_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let place = Directory::new(dir.path().into());
    let (manifest, _) = written(&place);
    let path = dir.path().join(NAME).join(MANIFEST);
    let text = fs::read(&path).unwrap();
    assert_eq!(CheckpointManifest::from_text(std::str::from_utf8(&text).unwrap()), Ok(manifest));
    for at in 0..text.len() {
        fs::write(&path, &text[..at]).unwrap();
        assert!(open(&place, NAME).is_err(), "torn at {at}");
        let mut flipped = text.clone();
        flipped[at] ^= 1;
        fs::write(&path, &flipped).unwrap();
        assert!(open(&place, NAME).is_err(), "flipped at {at}");
    }
    fs::remove_file(&path).unwrap();
    assert!(matches!(open(&place, NAME), Err(CheckpointError::Disk { what: "read", .. })));
}

#[test]
fn a_file_torn_or_changed_anywhere_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for place in places(dir.path()) {
        let place = &*place;
        let (manifest, _) = written(place);
        let file = &manifest.files[1];
        let bytes = place.read(NAME, &file.file).unwrap();
        let replace = |bytes: &[u8]| {
            fs::write(place.staged(NAME, &file.file).unwrap(), bytes).unwrap();
            place.keep(NAME, &file.file).unwrap();
        };
        let map = BlockMap::new(&model(), 1);
        let read = || part::read((place, NAME), &manifest, map.of_shard(ShardId(0)));
        for at in (0..bytes.len()).step_by(997) {
            replace(&bytes[..at]);
            let torn = read().unwrap_err().to_string();
            assert!(torn.contains("blocks-1-3") && torn.contains("the manifest says"), "torn at {at}: {torn}");
            assert!(place.check(NAME, file).is_err() && complete(place, NAME, &manifest).is_err());
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x40;
            replace(&flipped);
            assert!(read().unwrap_err().to_string().contains("hash"), "flipped at {at}");
        }
        place.remove(NAME, std::slice::from_ref(&file.file)).unwrap();
        assert!(read().unwrap_err().to_string().starts_with("cannot read"));
        assert!(complete(place, NAME, &manifest).unwrap_err().to_string().contains("is not there"));
        let less = CheckpointManifest { files: manifest.files[..1].to_vec(), ..manifest.clone() };
        let error = part::read((place, NAME), &less, map.of_shard(ShardId(0))).unwrap_err();
        assert!(error.to_string().contains("no file has block 1"), "{error}");
    }
}

#[test]
fn what_is_sent_in_parts_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    for place in places(dir.path()) {
        // Two parts and a bit of a third.
        let bytes: Vec<u8> = (0..(33 << 20) + 5_u32).map(|i| (i >> 8) as u8 ^ i as u8).collect();
        fs::write(place.staged("step-1", "large").unwrap(), &bytes).unwrap();
        place.keep("step-1", "large").unwrap();
        assert!(place.read("step-1", "large").unwrap() == bytes, "{}", place.root());
        let copy = dir.path().join("copy");
        place.fetch("step-1", "large", &copy).unwrap();
        assert!(fs::read(&copy).unwrap() == bytes);
        fs::remove_file(&copy).unwrap();
    }
}

#[test]
fn what_makes_no_place_is_said() {
    let run = Path::new("/nowhere");
    let problem = |text: &str| place::at(text, run).unwrap_err().to_string();
    assert!(problem("ftp://a/b").contains("begins with s3://, gs:// or az://"), "{}", problem("ftp://a/b"));
    assert!(problem("http://a/b").contains("begins with s3://, gs:// or az://"));
    for text in ["s3://key:hidden@bucket/x", "s3://key:hid/den@bucket/x", "s3://bucket/x?key=hidden"] {
        let refused = problem(text);
        assert!(refused.contains("belong into the environment") && !refused.contains("hid"), "{refused}");
    }
    assert!(matches!(place::at("/tmp/x", run), Ok(place::Root::Directory(path)) if path == Path::new("/tmp/x")));
    assert!(matches!(place::at("file:///tmp/x", run), Ok(place::Root::Directory(path)) if path == Path::new("/tmp/x")));
}

#[test]
fn a_full_disk_leaves_no_file() {
    // A device that is always full stands for the disk.
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(NAME)).unwrap();
    let target = dir.path().join(NAME).join("blocks-0-0.era-1.server-2.safetensors");
    std::os::unix::fs::symlink("/dev/full", &target).unwrap();
    let kept = Kept {
        block: convoy_proto::ids::BlockId(0),
        parameters: Arc::new(vec![1.0; 70_000].into()),
        average: None,
        state: Arc::default(),
        updates: 0,
    };
    let snapshot = Snapshot { commit: Step(1), loss_scale: LossScale::new(1.0), blocks: vec![kept] };
    let error = part::write((&Directory::new(dir.path().into()), NAME), WRITER, &snapshot).unwrap_err();
    assert!(error.to_string().contains("No space left on device"), "{error}");
    assert!(!target.exists() && fs::symlink_metadata(&target).is_err());
}
