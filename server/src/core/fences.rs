//! Who may push what: checks in front of a shard that change nothing.

use bytes::Bytes;
use convoy_proto::{
    codec::Encoding,
    ids::{Member, Role},
    messages::{ClusterView, GradientBlock, PushHeader},
    sum,
};

use super::{cell::Cell, ledger::LedgerError, refusal::Refusal};

/// Lets in a payload of the block's size only.
pub fn check_length(cell: &Cell, got: usize) -> Result<(), Refusal> {
    let want = cell.block().bytes();
    if want == got { Ok(()) } else { Err(Refusal::Length { block: cell.block().id, want, got }) }
}

/// What an encoded part stands for, in full; nothing for one that is.
pub fn decoded(cell: &Cell, part: &GradientBlock) -> Result<Option<GradientBlock>, Refusal> {
    if part.encoding == Encoding::F32 {
        return Ok(None);
    }
    struct Decoded(Vec<f32>);
    impl AsRef<[u8]> for Decoded {
        fn as_ref(&self) -> &[u8] {
            sum::payload_of(&self.0)
        }
    }
    let (block, elements) = (part.block, cell.block().len as usize);
    let values = part.encoding.decode(&part.payload, elements);
    let values = values.map_err(|problem| Refusal::Encoding { block, problem })?;
    let payload = Bytes::from_owner(Decoded(values));
    Ok(Some(GradientBlock { block, node: part.node, encoding: Encoding::F32, payload, place: None }))
}

/// Lets in what acts on a view that the shard knows.
pub fn known(view: &ClusterView, header: &PushHeader) -> Result<(), Refusal> {
    if header.generation > view.generation { Err(outdated(view, header)) } else { Ok(()) }
}

/// The caller does not know the membership.
pub fn outdated(view: &ClusterView, header: &PushHeader) -> Refusal {
    Refusal::Generation { ours: view.generation, theirs: header.generation }
}

/// Lets in a worker's current incarnation only.
pub fn fence(view: &ClusterView, member: Member) -> Result<(), Refusal> {
    match view.incarnations.get(member.rank as usize) {
        Some(current) if member.role == Role::Worker && *current == member.incarnation => Ok(()),
        Some(current) if member.role == Role::Worker => Err(Refusal::Fenced { member, current: *current }),
        _ => Err(Refusal::Stranger(member)),
    }
}

/// Lets in the slices that the caller owns only.
pub fn own(view: &ClusterView, header: &PushHeader) -> Result<(), Refusal> {
    for slice in header.slices.iter().map(|header| header.slice) {
        match view.owners.get(slice.index()) {
            Some(owner) if owner.0 == header.member.rank => {}
            // The caller may not know yet that slices have changed hands.
            Some(_) if header.generation < view.generation => return Err(outdated(view, header)),
            Some(owner) => return Err(Refusal::NotOwner { slice, owner: *owner, member: header.member }),
            None => return Err(LedgerError::UnknownSlice(slice, view.owners.len() as u32).into()),
        }
    }
    Ok(())
}
