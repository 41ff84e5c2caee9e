//! Shared memory from a reader's side.

use std::{fs, io, sync::Arc};

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};

use super::{HEADER, MAGIC, NAME, Pass, SharedError, cannot};

/// Another process's memory, to be read.
#[derive(Debug)]
pub struct View {
    map: Mmap,
}

/// A part of a view, which keeps all of it.
struct Part {
    view: Arc<View>,
    range: std::ops::Range<usize>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.view.map[self.range.clone()]
    }
}

impl View {
    /// Opens a segment that another process, or this one, has made.
    ///
    /// # Errors
    /// The process is not to be seen from here, or has something else there.
    pub fn open(pass: &Pass) -> Result<View, SharedError> {
        let other = |problem| SharedError::Other { pid: pass.pid, problem };
        let path = format!("/proc/{}/fd/{}", pass.pid, pass.fd);
        // Nothing else is opened, which might do something when it is.
        let target = fs::read_link(&path).map_err(cannot("find"))?;
        if !target.to_string_lossy().starts_with(&format!("/memfd:{NAME}")) {
            return Err(other("that file is something else"));
        }
        let file = open(&path).map_err(cannot("open"))?;
        let size = usize::try_from(pass.bytes).ok().and_then(|bytes| bytes.checked_add(HEADER));
        let size = size.ok_or_else(|| other("its size is none"))?;
        let there = file.metadata().map_err(cannot("look at"))?.len();
        if !is_sealed(&file) || there < size as u64 {
            return Err(other("it is smaller, or may become so"));
        }
        // SAFETY: it cannot shrink, and whoever writes to it changes numbers, of which any will do.
        let map = unsafe { MmapOptions::new().len(size).map(&file) }.map_err(cannot("map"))?;
        if map[..32] != [MAGIC, pass.key].concat() {
            return Err(other("it has another key"));
        }
        Ok(View { map })
    }

    /// Some of its bytes, if it has them; they keep the memory.
    pub fn bytes(self: &Arc<View>, offset: u64, bytes: u64) -> Option<Bytes> {
        let start = usize::try_from(offset).ok()?.checked_add(HEADER)?;
        let end = start.checked_add(usize::try_from(bytes).ok()?)?;
        let is_there = end <= self.map.len();
        is_there.then(|| Bytes::from_owner(Part { view: self.clone(), range: start..end }))
    }
}

#[cfg(target_os = "linux")]
fn open(path: &str) -> io::Result<fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new().read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits()).open(path)
}

#[cfg(target_os = "linux")]
fn is_sealed(file: &fs::File) -> bool {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    let seals = fcntl(file, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_truncate);
    seals.is_ok_and(|seals| seals.contains(SealFlag::F_SEAL_SHRINK))
}

#[cfg(not(target_os = "linux"))]
fn open(_: &str) -> io::Result<fs::File> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
fn is_sealed(_: &fs::File) -> bool {
    false
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::os::fd::AsRawFd;

    use super::{super::Segment, *};

    #[test]
    fn opens_what_it_was_told_of_and_nothing_else() {
        let segment = Segment::new(10_000).unwrap();
        let pass = segment.pass();
        let view = Arc::new(View::open(&pass).unwrap());
        assert_eq!(view.bytes(0, 10_000).map(|bytes| bytes.len()), Some(10_000));
        for (offset, bytes) in [(0, 10_001), (10_000, 1), (u64::MAX, 1), (1, u64::MAX)] {
            assert_eq!(view.bytes(offset, bytes), None, "{offset}+{bytes}");
        }
        let (plain, null) = (tempfile(), fs::File::open("/dev/null").unwrap());
        let wrong = [
            Pass { key: [1; 16], ..pass },
            Pass { bytes: 1 << 20, ..pass },
            Pass { bytes: u64::MAX, ..pass },
            Pass { fd: plain.as_raw_fd() as u32, ..pass },
            Pass { fd: null.as_raw_fd() as u32, ..pass },
            Pass { fd: 99_999, ..pass },
            Pass { pid: u32::MAX, ..pass },
        ];
        for pass in wrong {
            assert!(View::open(&pass).is_err(), "{pass:?}");
        }
    }

    /// Memory of the right name that its maker could still take away.
    fn tempfile() -> fs::File {
        use nix::sys::memfd::{MFdFlags, memfd_create};
        let file: fs::File = memfd_create(NAME, MFdFlags::MFD_CLOEXEC).unwrap().into();
        file.set_len(1 << 20).unwrap();
        file
    }

    #[test]
    fn nobody_else_writes_and_nobody_shrinks() {
        let segment = Segment::new(100).unwrap();
        let path = format!("/proc/self/fd/{}", segment.pass().fd);
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        assert!(file.set_len(10).is_err() && file.set_len(1 << 20).is_err());
        use std::os::unix::fs::FileExt;
        assert!(file.write_at(&[1], 0).is_err());
    }
}
