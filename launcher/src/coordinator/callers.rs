//! Who calls the coordinator: the member that a message names, and whether the token that was shown may speak for it.

use convoy_proto::{
    access::TokenRole,
    ids::{Member, Role},
    wire,
};
use tonic::{Request, Status};

/// A member that a message names.
pub(super) fn member(member: Option<wire::Member>) -> Result<Member, Status> {
    Ok(Member::try_from(member)?)
}

/// A member that speaks for itself, as far as the token that was shown tells.
pub(super) fn own(shown: Option<TokenRole>, whose: Option<wire::Member>) -> Result<Member, Status> {
    let member = member(whose)?;
    may_be(shown, member.role).map(|()| member)
}

/// The role of the token that was shown, where there are tokens.
pub(super) fn shown<T>(request: &Request<T>) -> Option<TokenRole> {
    request.extensions().get().copied()
}

/// Whether who showed a token may be one of a role.
pub(super) fn may_be(shown: Option<TokenRole>, role: Role) -> Result<(), Status> {
    match shown.filter(|token| !token.may_join_as(role)) {
        None => Ok(()),
        Some(token) => {
            let text = format!("the token is of the role {token}, which may not join as a {role}, nor speak for one");
            Err(Status::permission_denied(text))
        }
    }
}
