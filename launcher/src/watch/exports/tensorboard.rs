//! TensorBoard's event files: records of a length, the event as protobuf, and checksums of both.
//!
//! The messages are those of tensorflow/core/util/event.proto and framework/summary.proto, as far as scalars need them.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
};

use convoy_proto::process;
use prost::Message;

use super::{Export, Scalar};
use crate::train::pulse::time;

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<SummaryValue>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryValue {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// A session's start: what is at its step or after it is void.
const START: i32 = 1;

/// A file of events.
pub struct Events(BufWriter<File>);

impl Events {
    /// Begins a file in a directory.
    pub fn create(dir: &Path) -> io::Result<Events> {
        fs::create_dir_all(dir)?;
        let name = format!("events.out.tfevents.{:.0}.{}.{}", time(), process::host_name(), std::process::id());
        let mut events = Events(BufWriter::new(File::create(dir.join(name))?));
        let version = Some("brain.Event:2".into());
        events.write(&Event { wall_time: time(), file_version: version, ..Event::default() })?;
        Ok(events)
    }

    fn write(&mut self, event: &Event) -> io::Result<()> {
        self.0.write_all(&record(&event.encode_to_vec()))
    }
}

impl Export for Events {
    fn add(&mut self, scalar: &Scalar) -> io::Result<()> {
        let value = SummaryValue { tag: scalar.name.clone(), simple_value: Some(scalar.value as f32) };
        let summary = Some(Summary { value: vec![value] });
        self.write(&Event { wall_time: scalar.time, step: scalar.step as i64, summary, ..Event::default() })
    }

    fn undo(&mut self, step: u64, time: f64) -> io::Result<()> {
        let session_log = Some(SessionLog { status: START });
        self.write(&Event { wall_time: time, step: step as i64 + 1, session_log, ..Event::default() })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// As TFRecord files have it.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length).to_le_bytes(), data, &masked(data).to_le_bytes()].concat()
}

/// CRC-32C, turned and added to, so that a checksum of what holds checksums is none of the usual ones.
fn masked(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_framed_by_checksums() {
        let event = Event { wall_time: 1.5, step: 7, file_version: Some("brain.Event:2".into()), ..Event::default() };
        let data = event.encode_to_vec();
        let bytes = record(&data);
        assert_eq!(bytes.len(), 8 + 4 + data.len() + 4);
        assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()), data.len() as u64);
        // CRC-32C of "123456789" is 0xe3069283 (RFC 3720).
        assert_eq!(masked(b"123456789"), 0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8));
        assert_eq!(Event::decode(&bytes[12..12 + data.len()]).unwrap(), event);
    }
}
