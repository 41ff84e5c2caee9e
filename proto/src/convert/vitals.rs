//! What processes use of their machines, and where they spend their time.

use super::shown;
use crate::{
    messages::{GpuVitals, ShardVitals, Vitals},
    trace::{Span, SpanId},
    wire,
};

impl From<Vitals> for wire::Vitals {
    fn from(vitals: Vitals) -> Self {
        let Vitals { cores, memory_bytes, gpu, shard } = vitals;
        wire::Vitals {
            cores,
            memory_bytes,
            gpu: gpu.map(|GpuVitals { utilisation, memory_used_bytes, memory_bytes }| wire::GpuVitals {
                utilisation,
                memory_used_bytes,
                memory_bytes,
            }),
            shard: shard
                .map(|ShardVitals { open_pushes, work_seconds }| wire::ShardVitals { open_pushes, work_seconds }),
        }
    }
}

impl From<wire::Vitals> for Vitals {
    fn from(vitals: wire::Vitals) -> Self {
        let wire::Vitals { cores, memory_bytes, gpu: gpu_of, shard: shard_of } = vitals;
        let gpu = |wire::GpuVitals { utilisation, memory_used_bytes, memory_bytes }| GpuVitals {
            utilisation: shown(utilisation),
            memory_used_bytes,
            memory_bytes,
        };
        let shard = |wire::ShardVitals { open_pushes, work_seconds }| ShardVitals {
            open_pushes,
            work_seconds: shown(work_seconds),
        };
        Vitals { cores: shown(cores), memory_bytes, gpu: gpu_of.map(gpu), shard: shard_of.map(shard) }
    }
}

/// A name is for people: what is longer is cut.
const NAME: usize = 64;

impl From<Span> for wire::Span {
    fn from(span: Span) -> Self {
        let Span { id, parent, name, track, step, start_us, duration_us } = span;
        wire::Span { id: id.0, parent: parent.map_or(0, |parent| parent.0), name, track, step, start_us, duration_us }
    }
}

impl From<wire::Span> for Span {
    fn from(span: wire::Span) -> Self {
        let wire::Span { id, parent, name, track, step, start_us, duration_us } = span;
        let (id, parent) = (SpanId(id), Some(SpanId(parent)).filter(|parent| parent.0 > 0));
        let name = if name.len() > NAME { name.chars().take(NAME).collect() } else { name };
        Span { id, parent, name, track, step, start_us, duration_us }
    }
}
