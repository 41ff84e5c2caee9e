//! Messages of the data path: pushes up, parameters down.

use bytes::Bytes;

use super::{Result, WireError, finite, present, weight, wrong};
use crate::{
    codec::Encoding,
    ids::{BlockId, Era, Generation, SliceId, Step},
    loss_scale::LossScale,
    messages::{
        BlockState, CopyPart, DealtSlice, Extent, GradientBlock, ParameterBlock, Place, Pull, Pulled, PulledPart,
        PushHeader, PushPart, Setback, SliceHeader, Weights,
    },
    shared::Pass,
    tree::Node,
    wire,
};

impl From<PushHeader> for wire::PushHeader {
    fn from(header: PushHeader) -> Self {
        let slices = header.slices.iter().map(|slice| wire::SliceHeader {
            slice: slice.slice.0,
            weight: slice.weight,
            loss_sum: slice.loss_sum,
            finite: slice.finite,
        });
        wire::PushHeader {
            member: Some(header.member.into()),
            generation: header.generation.0,
            era: header.era.0,
            step: header.step.0,
            slices: slices.collect(),
            loss_scale: header.loss_scale,
            sequence: header.sequence,
            dealt: header.dealt.map(|dealt| wire::SliceOfStep { step: dealt.step, slice: dealt.slice.0 }),
        }
    }
}

impl TryFrom<wire::PushHeader> for PushHeader {
    type Error = WireError;

    fn try_from(header: wire::PushHeader) -> Result<Self> {
        let slices = header.slices.iter().map(|slice| {
            let weight = weight("slice.weight", slice.weight)?;
            let loss_sum = if slice.finite { finite("slice.loss_sum", slice.loss_sum)? } else { slice.loss_sum };
            Ok(SliceHeader { slice: SliceId(slice.slice), weight, loss_sum, finite: slice.finite })
        });
        Ok(PushHeader {
            slices: slices.collect::<Result<_>>()?,
            member: header.member.try_into()?,
            generation: Generation(header.generation),
            era: Era(header.era),
            step: Step(header.step),
            sequence: header.sequence,
            dealt: header.dealt.map(|dealt| DealtSlice { step: dealt.step, slice: SliceId(dealt.slice) }),
            loss_scale: finite("loss_scale", header.loss_scale)?,
        })
    }
}

impl From<Encoding> for wire::Encoding {
    fn from(encoding: Encoding) -> Self {
        match encoding {
            Encoding::F32 => wire::Encoding::F32,
            Encoding::Bf16 => wire::Encoding::Bf16,
            Encoding::F16 => wire::Encoding::F16,
            Encoding::Int8 => wire::Encoding::Int8,
            Encoding::TopK => wire::Encoding::Topk,
        }
    }
}

fn encoding(encoding: i32) -> Result<Encoding> {
    Ok(match wire::Encoding::try_from(encoding) {
        Ok(wire::Encoding::F32) => Encoding::F32,
        Ok(wire::Encoding::Bf16) => Encoding::Bf16,
        Ok(wire::Encoding::F16) => Encoding::F16,
        Ok(wire::Encoding::Int8) => Encoding::Int8,
        Ok(wire::Encoding::Topk) => Encoding::TopK,
        Ok(wire::Encoding::Unspecified) | Err(_) => {
            return Err(wrong("encoding", format!("{encoding} is unknown")));
        }
    })
}

fn dense(number: i32) -> Result<()> {
    match encoding(number)? {
        Encoding::F32 => Ok(()),
        other => Err(wrong("encoding", format!("is {other:?}, and parameters are sent as they are"))),
    }
}

/// What of a payload goes over the connection: nothing, if it is where the receiver sees it.
fn sent(payload: Bytes, place: Option<Place>) -> Bytes {
    if place.is_some() { Bytes::new() } else { payload }
}

impl From<Place> for wire::Place {
    fn from(Place { offset, bytes }: Place) -> Self {
        wire::Place { offset, bytes }
    }
}

impl From<wire::Place> for Place {
    fn from(wire::Place { offset, bytes }: wire::Place) -> Self {
        Place { offset, bytes }
    }
}

impl From<Pass> for wire::Segment {
    fn from(Pass { pid, fd, bytes, key }: Pass) -> Self {
        wire::Segment { pid, fd, bytes, key: key.to_vec().into() }
    }
}

impl TryFrom<wire::Segment> for Pass {
    type Error = WireError;

    fn try_from(wire::Segment { pid, fd, bytes, key }: wire::Segment) -> Result<Self> {
        let key = key[..].try_into().map_err(|_| wrong("key", format!("has {} bytes, not 16", key.len())))?;
        Ok(Pass { pid, fd, bytes, key })
    }
}

impl From<GradientBlock> for wire::GradientBlock {
    fn from(block: GradientBlock) -> Self {
        wire::GradientBlock {
            block: block.block.0,
            node_first: block.node.first,
            node_len: block.node.len,
            encoding: wire::Encoding::from(block.encoding).into(),
            payload: sent(block.payload, block.place),
            place: block.place.map(Into::into),
        }
    }
}

impl TryFrom<wire::GradientBlock> for GradientBlock {
    type Error = WireError;

    fn try_from(block: wire::GradientBlock) -> Result<Self> {
        let encoding = encoding(block.encoding)?;
        let end = block.node_first.checked_add(block.node_len).filter(|_| block.node_len > 0);
        present("node", end)?;
        let node = Node { first: block.node_first, len: block.node_len };
        let place = block.place.map(Into::into);
        Ok(GradientBlock { block: BlockId(block.block), node, encoding, payload: block.payload, place })
    }
}

impl From<ParameterBlock> for wire::ParameterBlock {
    fn from(block: ParameterBlock) -> Self {
        wire::ParameterBlock {
            block: block.block.0,
            encoding: wire::Encoding::F32.into(),
            payload: sent(block.payload, block.place),
            place: block.place.map(Into::into),
        }
    }
}

impl TryFrom<wire::ParameterBlock> for ParameterBlock {
    type Error = WireError;

    fn try_from(block: wire::ParameterBlock) -> Result<Self> {
        dense(block.encoding)?;
        Ok(ParameterBlock { block: BlockId(block.block), payload: block.payload, place: block.place.map(Into::into) })
    }
}

impl From<Pull> for wire::PullRequest {
    fn from(pull: Pull) -> Self {
        wire::PullRequest {
            member: Some(pull.member.into()),
            era: pull.era.0,
            step: pull.step.map(|step| step.0),
            averaged: pull.weights == Weights::Averaged,
            shared: pull.is_shared,
            extent: match pull.extent {
                Extent::All => wire::Extent::All,
                Extent::Trained => wire::Extent::Trained,
                Extent::Nothing => wire::Extent::Nothing,
            }
            .into(),
        }
    }
}

impl TryFrom<wire::PullRequest> for Pull {
    type Error = WireError;

    fn try_from(request: wire::PullRequest) -> Result<Self> {
        let weights = if request.averaged { Weights::Averaged } else { Weights::Trained };
        let extent = match wire::Extent::try_from(request.extent) {
            Ok(wire::Extent::All) => Extent::All,
            Ok(wire::Extent::Trained) => Extent::Trained,
            Ok(wire::Extent::Nothing) => Extent::Nothing,
            Ok(wire::Extent::Unspecified) | Err(_) => {
                return Err(wrong("extent", format!("{} is unknown", request.extent)));
            }
        };
        let (member, era, step) = (request.member.try_into()?, Era(request.era), request.step.map(Step));
        Ok(Pull { member, era, step, weights, extent, is_shared: request.shared })
    }
}

fn all<W, D: TryFrom<W, Error = WireError>>(items: Vec<W>) -> Result<Vec<D>> {
    items.into_iter().map(D::try_from).collect()
}

/// The two RPCs that push carry the same parts under different names.
macro_rules! push_part {
    ($request:ident, $part:ident $(, $more:ident)*) => {
        impl From<PushPart> for wire::$request {
            fn from(part: PushPart) -> Self {
                use wire::$part::Part;
                let part = match part {
                    PushPart::Header(header) => Part::Header(header.into()),
                    PushPart::Blocks(blocks) => {
                        Part::Frame(wire::GradientFrame { blocks: blocks.into_iter().map(Into::into).collect() })
                    }
                };
                wire::$request { part: Some(part) $(, $more: false)* }
            }
        }

        impl TryFrom<wire::$request> for PushPart {
            type Error = WireError;

            fn try_from(request: wire::$request) -> Result<Self> {
                use wire::$part::Part;
                match present("part", request.part)? {
                    Part::Header(header) => Ok(PushPart::Header(header.try_into()?)),
                    Part::Frame(frame) => Ok(PushPart::Blocks(all(frame.blocks)?)),
                }
            }
        }
    };
}

push_part!(PushRequest, push_request);
push_part!(PushPullRequest, push_pull_request, without_blocks, shared);

impl From<BlockState> for wire::BlockState {
    fn from(state: BlockState) -> Self {
        let BlockState { block, parameters, average, state, updates } = state;
        wire::BlockState { block: block.0, parameters, average, state, updates }
    }
}

impl From<wire::BlockState> for BlockState {
    fn from(state: wire::BlockState) -> Self {
        let wire::BlockState { block, parameters, average, state, updates } = state;
        BlockState { block: BlockId(block), parameters, average, state, updates }
    }
}

impl From<CopyPart> for wire::CopyResponse {
    fn from(part: CopyPart) -> Self {
        use wire::copy_response::Part;
        let part = match part {
            CopyPart::Blocks(blocks) => {
                Part::Frame(wire::BlockStates { blocks: blocks.into_iter().map(Into::into).collect() })
            }
            CopyPart::End { loss_scale, clean } => Part::End(wire::CopyEnd { loss_scale, clean }),
        };
        wire::CopyResponse { part: Some(part) }
    }
}

impl TryFrom<wire::CopyResponse> for CopyPart {
    type Error = WireError;

    fn try_from(response: wire::CopyResponse) -> Result<Self> {
        use wire::copy_response::Part;
        match present("part", response.part)? {
            Part::Frame(frame) => Ok(CopyPart::Blocks(frame.blocks.into_iter().map(Into::into).collect())),
            Part::End(wire::CopyEnd { loss_scale, clean }) if LossScale::fits(loss_scale) => {
                Ok(CopyPart::End { loss_scale, clean })
            }
            Part::End(end) => Err(wrong("loss_scale", format!("is {}", end.loss_scale))),
        }
    }
}

impl From<Pulled> for wire::PullResponse {
    fn from(pulled: Pulled) -> Self {
        let blocks = pulled.blocks.into_iter().map(Into::into).collect();
        wire::PullResponse { step: pulled.step.0, blocks, last: pulled.is_last }
    }
}

impl TryFrom<wire::PullResponse> for Pulled {
    type Error = WireError;

    fn try_from(response: wire::PullResponse) -> Result<Self> {
        Ok(Pulled { step: Step(response.step), blocks: all(response.blocks)?, is_last: response.last })
    }
}

impl From<PulledPart> for wire::PushPullResponse {
    fn from(part: PulledPart) -> Self {
        use wire::push_pull_response::Part;
        let part = match part {
            PulledPart::Blocks(blocks) => {
                Part::Frame(wire::ParameterFrame { blocks: blocks.into_iter().map(Into::into).collect() })
            }
            PulledPart::Committed(verdict) => Part::Committed(verdict.into()),
            PulledPart::Setback(Setback::Missed(step)) => Part::Missed(step.0),
            PulledPart::Setback(Setback::Outdated(generation)) => Part::Outdated(generation.0),
            PulledPart::Setback(Setback::Rescale(scale)) => Part::Rescale(scale),
        };
        wire::PushPullResponse { part: Some(part) }
    }
}

impl TryFrom<wire::PushPullResponse> for PulledPart {
    type Error = WireError;

    fn try_from(response: wire::PushPullResponse) -> Result<Self> {
        use wire::push_pull_response::Part;
        match present("part", response.part)? {
            Part::Frame(frame) => Ok(PulledPart::Blocks(all(frame.blocks)?)),
            Part::Committed(verdict) => Ok(PulledPart::Committed(Some(verdict).try_into()?)),
            Part::Missed(step) => Ok(PulledPart::Setback(Setback::Missed(Step(step)))),
            Part::Outdated(generation) => Ok(PulledPart::Setback(Setback::Outdated(Generation(generation)))),
            Part::Rescale(scale) if LossScale::fits(scale) => Ok(PulledPart::Setback(Setback::Rescale(scale))),
            Part::Rescale(scale) => Err(wrong("rescale", format!("{scale} is no power of two in range"))),
        }
    }
}
