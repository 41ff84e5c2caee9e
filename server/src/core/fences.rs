//! Who may push what: checks in front of a shard that change nothing.

use convoy_proto::{
    ids::{Member, Role},
    messages::{ClusterView, PushHeader},
};

use super::{cell::Cell, ledger::LedgerError, refusal::Refusal};

/// Lets in a payload of the block's size only.
pub fn check_length(cell: &Cell, got: usize) -> Result<(), Refusal> {
    let want = cell.block().bytes();
    if want == got { Ok(()) } else { Err(Refusal::Length { block: cell.block().id, want, got }) }
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
