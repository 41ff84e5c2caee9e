//! Raw limits: what copying memory and a plain TCP connection on loopback reach here.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use super::median;
use crate::outcome::Failure;

/// How often each is measured.
const TIMES: usize = 7;
/// How much is written and read at once.
const CHUNK: usize = 1 << 20;

/// Bytes a second, read and written, that copies of so many bytes by each of some threads reach.
pub fn copy(bytes: usize, threads: usize) -> f64 {
    let elements = bytes / 4;
    let mut places: Vec<(Vec<f32>, Vec<f32>)> =
        (0..threads).map(|_| (vec![1.0; elements], vec![0.0; elements])).collect();
    let seconds = (0..TIMES).map(|_| {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for (from, to) in &mut places {
                scope.spawn(|| to.copy_from_slice(from));
            }
        });
        start.elapsed().as_secs_f64()
    });
    (2 * bytes * threads) as f64 / median(seconds.collect()).unwrap_or(f64::INFINITY)
}

/// Bytes a second that a TCP connection on loopback carries one way: sent by one thread, received by another.
///
/// # Errors
/// No such connection.
pub fn tcp(bytes: usize) -> Result<f64, Failure> {
    let cannot = |problem| Failure::Environment(format!("cannot measure a TCP connection on loopback: {problem}"));
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(cannot)?;
    let mut sender = TcpStream::connect(listener.local_addr().map_err(cannot)?).map_err(cannot)?;
    let (mut receiver, _) = listener.accept().map_err(cannot)?;
    sender.set_nodelay(true).map_err(cannot)?;
    let receiving = std::thread::spawn(move || -> std::io::Result<()> {
        let mut chunk = vec![0; CHUNK.min(bytes)];
        for _ in 0..TIMES {
            let mut left = bytes;
            while left > 0 {
                let most = left.min(chunk.len());
                receiver.read_exact(&mut chunk[..most])?;
                left -= most;
            }
            receiver.write_all(&[1])?;
        }
        Ok(())
    });
    let chunk = vec![1; CHUNK.min(bytes)];
    let mut seconds = Vec::new();
    for _ in 0..TIMES {
        let start = Instant::now();
        let mut left = bytes;
        while left > 0 {
            let most = left.min(chunk.len());
            sender.write_all(&chunk[..most]).map_err(cannot)?;
            left -= most;
        }
        sender.read_exact(&mut [0]).map_err(cannot)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    // A receiver that failed has ended the connection, which the sender has seen.
    let _ = receiving.join();
    Ok(bytes as f64 / median(seconds).unwrap_or(f64::INFINITY))
}

/// Bytes of memory that are free, where the system says.
pub fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_numbers() {
        assert!(copy(1 << 16, 2).is_normal());
        assert!(tcp(3 << 20).unwrap().is_normal());
        assert!(tcp(100).unwrap().is_normal());
    }
}
