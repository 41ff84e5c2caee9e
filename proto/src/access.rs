//! Who may do what: tokens, the roles that they are for, and the roles that may make each call.
//!
//! One secret makes a cluster's tokens, each the HMAC-SHA-256 of its role's name under the secret: who holds a token can
//! make no other from it. Who is to check tokens has their SHA-256, a [`Guard`], and can make none either. Comparisons take
//! the same time whatever differs.

use std::{collections::BTreeMap, fmt, str::FromStr};

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::{hex, ids::Role};

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TokenRole {
    /// See how a run stands.
    Observer,
    /// Take part as a worker.
    Worker,
    /// Take part as a server, or as a worker.
    Server,
    /// Anything.
    Admin,
}

const ROLES: [TokenRole; 4] = [TokenRole::Observer, TokenRole::Worker, TokenRole::Server, TokenRole::Admin];

impl fmt::Display for TokenRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TokenRole::Observer => "observer",
            TokenRole::Worker => "worker",
            TokenRole::Server => "server",
            TokenRole::Admin => "admin",
        })
    }
}

impl TokenRole {
    /// Whether who has it may join a cluster as one of a role.
    pub fn may_join_as(self, role: Role) -> bool {
        match self {
            TokenRole::Admin => true,
            // It sees workers' tokens anyway, and has all that they could spoil.
            TokenRole::Server => role != Role::Launcher,
            TokenRole::Worker => role == Role::Worker,
            TokenRole::Observer => false,
        }
    }
}

impl FromStr for TokenRole {
    type Err = String;

    fn from_str(text: &str) -> Result<TokenRole, String> {
        let role = ROLES.into_iter().find(|role| role.to_string() == text);
        role.ok_or_else(|| format!("there is no role `{text}`: observer, worker, server or admin"))
    }
}

/// Why a call is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// There is no token.
    #[error("a token is missing: say --certs with a directory that has one, or set CONVOY_TOKEN")]
    Missing,
    /// It is none that this cluster's secret makes.
    #[error("the token is not one of this cluster's")]
    Wrong,
    /// It grants something else.
    #[error("the token is {} {role}'s, which may not do this: it takes {}", article(*role), any_of(needed))]
    Lesser {
        /// What it grants.
        role: TokenRole,
        /// Any of what would do.
        needed: Vec<TokenRole>,
    },
}

fn article(role: TokenRole) -> &'static str {
    if matches!(role, TokenRole::Observer | TokenRole::Admin) { "an" } else { "a" }
}

fn any_of(roles: &[TokenRole]) -> String {
    let names: Vec<_> = roles.iter().map(|role| format!("{} {role}'s", article(*role))).collect();
    names.join(" or ")
}

/// What makes a cluster's tokens, and checks them. Not shown, not even for debugging.
#[derive(Clone)]
pub struct Secret([u8; SECRET_BYTES]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Proof of a role. Not shown, not even for debugging.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    role: TokenRole,
    proof: String,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.role)
    }
}

/// The variable that may hold a token, or the secret, in place of a file.
pub const VARIABLE: &str = "CONVOY_TOKEN";

/// A key of HMAC-SHA-256.
type Key256 = hmac::digest::Key<Hmac<Sha256>>;

const SECRET: &str = "convoy-secret-";
/// Bytes of a secret.
pub const SECRET_BYTES: usize = 32;

impl Secret {
    /// A secret of random bytes.
    pub fn new(bytes: [u8; SECRET_BYTES]) -> Secret {
        Secret(bytes)
    }

    /// The secret as it is kept in a file.
    pub fn reveal(&self) -> String {
        format!("{SECRET}{}", hex(&self.0))
    }

    fn mac(&self, role: TokenRole) -> Hmac<Sha256> {
        // A key is a block long; shorter ones are filled up with zeros.
        let mut key = Key256::default();
        key[..SECRET_BYTES].copy_from_slice(&self.0);
        let mut mac = Hmac::<Sha256>::new(&key);
        mac.update(format!("convoy v1 {role}").as_bytes());
        mac
    }

    /// The token of a role.
    pub fn token(&self, role: TokenRole) -> Token {
        Token { role, proof: hex(&self.mac(role).finalize().into_bytes()) }
    }

    /// What checks its tokens.
    pub fn guard(&self) -> Guard {
        Guard(ROLES.into_iter().map(|role| (role, self.token(role).digest())).collect())
    }
}

/// What checks the tokens of a cluster, and makes none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard(pub BTreeMap<TokenRole, Vec<u8>>);

impl Guard {
    /// Lets a call in, or says why not.
    ///
    /// # Errors
    /// The token is missing, wrong, or grants something else.
    pub fn admit(&self, path: &str, shown: Option<&str>) -> Result<Option<TokenRole>, Denied> {
        let allowed = allowed(path);
        if allowed.is_empty() {
            return Ok(None);
        }
        let token = Token::read(shown.ok_or(Denied::Missing)?).ok_or(Denied::Wrong)?;
        let expected = self.0.get(&token.role).ok_or(Denied::Wrong)?;
        if !bool::from(expected.ct_eq(&token.digest())) {
            return Err(Denied::Wrong);
        }
        match allowed.contains(&token.role) {
            true => Ok(Some(token.role)),
            false => Err(Denied::Lesser { role: token.role, needed: allowed.to_vec() }),
        }
    }
}

impl Token {
    /// What it grants, if it is one of the cluster's.
    pub fn role(&self) -> TokenRole {
        self.role
    }

    /// The token as it is sent, and kept in a file.
    pub fn reveal(&self) -> String {
        format!("convoy-{}-{}", self.role, self.proof)
    }

    fn digest(&self) -> Vec<u8> {
        Sha256::digest(self.reveal()).to_vec()
    }

    /// Reads a token.
    pub fn read(text: &str) -> Option<Token> {
        let (role, proof) = text.trim().strip_prefix("convoy-")?.split_once('-')?;
        let role = role.parse().ok()?;
        Some(Token { role, proof: proof.into() }).filter(|token| bytes_of(&token.proof).is_some())
    }
}

/// What a file or variable holds: the secret, or a token of it.
#[derive(Clone, Debug)]
pub enum Key {
    /// It makes all tokens.
    Secret(Secret),
    /// It is one.
    Token(Token),
}

impl Key {
    /// Reads what [`Secret::reveal`] or [`Token::reveal`] wrote.
    pub fn read(text: &str) -> Option<Key> {
        match text.trim().strip_prefix(SECRET) {
            Some(secret) => Some(Key::Secret(Secret(bytes_of(secret)?.try_into().ok()?))),
            None => Token::read(text).map(Key::Token),
        }
    }

    /// The token to show as a role: another role's, if that is all there is.
    pub fn token(&self, role: TokenRole) -> Token {
        match self {
            Key::Secret(secret) => secret.token(role),
            Key::Token(token) => token.clone(),
        }
    }
}

fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
        u8::from_str_radix(pair, 16).ok()
    });
    digits.collect::<Option<Vec<_>>>().filter(|bytes| !bytes.is_empty())
}

/// The roles that may make a call, by its path: `/package.Service/Method`. An empty list is everybody; a call that is not
/// known is the admin's.
pub fn allowed(path: &str) -> &'static [TokenRole] {
    use TokenRole::{Admin, Observer, Server, Worker};
    let (service, method) = path.strip_prefix('/').and_then(|path| path.split_once('/')).unwrap_or_default();
    match (service, method) {
        ("grpc.health.v1.Health", _) => &[],
        ("convoy.v1.CoordinationService", "GetStatus") => &[Observer, Worker, Server, Admin],
        (
            "convoy.v1.CoordinationService",
            "Join" | "Watch" | "Heartbeat" | "GetManifest" | "Leave" | "Deal" | "Report",
        )
        | ("convoy.v1.NodeService", _)
        | ("convoy.v1.ParametersService", "Initialise" | "Push" | "Pull" | "PushPull" | "Share") => {
            &[Worker, Server, Admin]
        }
        ("convoy.v1.CoordinationService", "Decide" | "Stage" | "ReportShard") => &[Server, Admin],
        ("convoy.v1.ParametersService", "Copy") => &[Server, Admin],
        ("grpc.reflection.v1.ServerReflection", _) => &[Observer, Worker, Server, Admin],
        _ => &[Admin],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lets_in_where_its_role_may_go() {
        let (secret, other) = (Secret::new([7; 32]), Secret::new([8; 32]));
        let admit = |guard: &Guard, path: &str, shown: Option<&str>| guard.admit(path, shown);
        let guard = secret.guard();
        let join = "/convoy.v1.CoordinationService/Join";
        let show = |role| secret.token(role).reveal();
        assert_eq!(admit(&guard, join, Some(&show(TokenRole::Worker))), Ok(Some(TokenRole::Worker)));
        assert_eq!(admit(&guard, join, None), Err(Denied::Missing));
        assert_eq!(admit(&guard, join, Some("convoy-worker-12")), Err(Denied::Wrong));
        assert_eq!(admit(&guard, join, Some(&other.token(TokenRole::Admin).reveal())), Err(Denied::Wrong));
        let denied = admit(&guard, join, Some(&show(TokenRole::Observer))).unwrap_err();
        let text = "the token is an observer's, which may not do this: it takes a worker's or a server's or an admin's";
        assert_eq!(denied.to_string(), text);
        assert_eq!(admit(&guard, "/grpc.health.v1.Health/Check", None), Ok(None));
        // A token cannot be turned into another by its name.
        let forged = show(TokenRole::Worker).replace("worker", "admin");
        assert_eq!(admit(&guard, join, Some(&forged)), Err(Denied::Wrong));
        assert!(admit(&guard, "/convoy.v1.CoordinationService/Scale", Some(&show(TokenRole::Server))).is_err());
        assert!(admit(&guard, "/convoy.v1.Unheard/Of", Some(&show(TokenRole::Worker))).is_err());
    }

    #[test]
    fn every_call_of_the_protocol_has_its_roles() {
        let files = [
            include_str!("../proto/convoy/v1/coordination.proto"),
            include_str!("../proto/convoy/v1/parameters.proto"),
            include_str!("../proto/convoy/v1/nodes.proto"),
        ];
        let calls = |text: &'static str| {
            let word = |line: &str| line.split(['(', ' ']).nth(1).unwrap().to_string();
            let service = text.lines().find(|line| line.starts_with("service ")).map(word).unwrap();
            let calls = text.lines().map(str::trim).filter(|line| line.starts_with("rpc ")).map(word);
            calls.map(move |call| format!("/convoy.v1.{service}/{call}")).collect::<Vec<_>>()
        };
        let known: Vec<_> = files.into_iter().flat_map(calls).collect();
        assert!(known.len() > 15, "{known:?}");
        for path in known {
            let only_admin = path.ends_with("/Scale");
            assert_eq!(allowed(&path) == [TokenRole::Admin], only_admin, "{path}");
        }
    }

    #[test]
    fn keys_read_as_they_are_written_and_show_nothing() {
        let secret = Secret::new([0xab; 32]);
        for role in ROLES {
            let token = secret.token(role);
            assert_eq!(Token::read(&format!(" {}\n", token.reveal())), Some(token.clone()));
            assert_eq!((token.role(), secret.guard().0[&role].len()), (role, 32));
            assert!(!format!("{token:?}").contains(&token.proof));
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        let Some(Key::Secret(read)) = Key::read(&secret.reveal()) else { panic!("it is a secret") };
        assert_eq!(read.guard(), secret.guard());
        assert_eq!(format!("{secret:?}"), "Secret");
        for text in
            ["", "convoy-secret-", "convoy-secret-abcd", "convoy-boss-ab", "convoy-worker-", "convoy-worker-x1", "ab"]
        {
            assert!(Key::read(text).is_none(), "{text}");
        }
    }
}
