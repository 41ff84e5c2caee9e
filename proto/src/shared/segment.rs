//! Shared memory from its maker's side.

use std::{io, os::fd::AsRawFd};

use memmap2::{MmapOptions, MmapRaw};

use super::{HEADER, MAGIC, SharedError, cannot};

/// What another process needs to open a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// The maker's process.
    pub pid: u32,
    /// The memory's file in it.
    pub fd: u32,
    /// The size, beyond the header.
    pub bytes: u64,
    /// What the memory begins with.
    pub key: [u8; 16],
}

/// Memory that others may read.
#[derive(Debug)]
pub struct Segment {
    map: MmapRaw,
    file: std::fs::File,
    key: [u8; 16],
    bytes: usize,
}

impl Segment {
    /// Memory of so many bytes, all zero. What is not touched takes no room.
    ///
    /// # Errors
    /// The system has no such memory, or not so much.
    pub fn new(bytes: usize) -> Result<Segment, SharedError> {
        let size = bytes.checked_add(HEADER).ok_or_else(|| cannot("make")(io::ErrorKind::OutOfMemory.into()))?;
        let file = anonymous(size).map_err(cannot("make"))?;
        let map = MmapOptions::new().len(size).map_raw(&file).map_err(cannot("map"))?;
        let mut key = [0; 16];
        getrandom::fill(&mut key).map_err(|problem| cannot("name")(io::Error::other(problem.to_string())))?;
        let header = [MAGIC, key].concat();
        // SAFETY: the map is writable and larger than its header, and nobody else has it yet.
        unsafe { std::ptr::copy_nonoverlapping(header.as_ptr(), map.as_mut_ptr(), header.len()) };
        seal(&file).map_err(cannot("seal"))?;
        Ok(Segment { map, file, key, bytes })
    }

    /// What another process needs to open it.
    pub fn pass(&self) -> Pass {
        let fd = u32::try_from(self.file.as_raw_fd()).unwrap_or(u32::MAX);
        Pass { pid: std::process::id(), fd, bytes: self.bytes as u64, key: self.key }
    }

    /// Where its memory begins, beyond the header.
    pub(super) fn start(&self) -> *mut u8 {
        // SAFETY: the map has the header's bytes, and more.
        unsafe { self.map.as_mut_ptr().add(HEADER) }
    }

    /// How much there is.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(target_os = "linux")]
fn anonymous(size: usize) -> io::Result<std::fs::File> {
    use nix::sys::{
        memfd::{MFdFlags, memfd_create},
        resource::{Resource, getrlimit},
    };
    // To ask for more ends the process.
    if getrlimit(Resource::RLIMIT_FSIZE).is_ok_and(|(limit, _)| limit < size as u64) {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let file = memfd_create(super::NAME, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let file = std::fs::File::from(file);
    file.set_len(size as u64)?;
    Ok(file)
}

/// From now on nobody changes the size, and nobody but this process writes.
#[cfg(target_os = "linux")]
fn seal(file: &std::fs::File) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    let size = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
    // Writers to come, too, where the system is new enough to know (Linux 5.1).
    if fcntl(file, FcntlArg::F_ADD_SEALS(size | SealFlag::F_SEAL_FUTURE_WRITE)).is_err() {
        fcntl(file, FcntlArg::F_ADD_SEALS(size))?;
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn anonymous(_: usize) -> io::Result<std::fs::File> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
fn seal(_: &std::fs::File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
