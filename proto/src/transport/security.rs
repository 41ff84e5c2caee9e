//! What a process shows to others and believes of them: certificates, and a token.

use std::{fmt, time::Duration};

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
    transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig},
};

use crate::access::{Guard, Key, Token, TokenRole};

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// A certificate with its key, and the authority that others' certificates must be of: all PEM.
#[derive(Clone)]
pub struct Tls {
    /// The authority's certificate.
    pub authority: Vec<u8>,
    /// This process's own, with what is between it and the authority.
    pub certificate: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Whether these are certificates, and a key of theirs.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        let listener = tonic::transport::Server::builder().tls_config(self.of_listener());
        listener.map(drop).map_err(|problem| super::chain(&problem))
    }

    fn identity(&self) -> Identity {
        Identity::from_pem(&self.certificate, &self.key)
    }

    /// For a listener: who calls must have a certificate of the authority, too.
    pub(super) fn of_listener(&self) -> ServerTlsConfig {
        let config = ServerTlsConfig::new().identity(self.identity()).timeout(HANDSHAKE);
        config.client_ca_root(Certificate::from_pem(&self.authority))
    }

    /// For a caller.
    pub(super) fn of_caller(&self) -> ClientTlsConfig {
        let config = ClientTlsConfig::new().identity(self.identity()).timeout(HANDSHAKE);
        config.ca_certificate(Certificate::from_pem(&self.authority))
    }
}

/// What a process has been given; nothing, where only loopback is served.
#[derive(Clone, Debug, Default)]
pub struct Security {
    /// For connections.
    pub tls: Option<Tls>,
    /// The secret, or a token.
    pub key: Option<Key>,
}

impl Security {
    /// What it shows when it calls others as one of a role.
    pub fn credentials(&self, role: TokenRole) -> Credentials {
        Credentials { tls: self.tls.clone(), token: self.key.as_ref().map(|key| key.token(role)) }
    }

    /// What checks others' tokens, if this process holds the secret.
    pub fn guard(&self) -> Option<Guard> {
        match &self.key {
            Some(Key::Secret(secret)) => Some(secret.guard()),
            Some(Key::Token(_)) | None => None,
        }
    }
}

/// What a caller shows.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// For its connections.
    pub tls: Option<Tls>,
    /// Its token.
    pub token: Option<Token>,
}

/// Shows a token with every call.
#[derive(Clone, Debug)]
pub struct Show(Option<MetadataValue<Ascii>>);

impl From<&Credentials> for Show {
    fn from(credentials: &Credentials) -> Show {
        let token = credentials.token.as_ref().and_then(|token| {
            let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.reveal()).parse().ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        Show(token)
    }
}

impl Interceptor for Show {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// What this process finds wrong with the other side, by what its errors say.
const FOUND: [(&str, &str); 8] = [
    ("UnknownIssuer", "its certificate is of another authority than ca.crt"),
    ("BadSignature", "its certificate is of another authority than ca.crt"),
    ("not valid for name", "its certificate is not for this name or address: make one with `launcher certs --host`"),
    ("certificate expired", "its certificate has expired: make another with `launcher certs`"),
    ("certificate not valid yet", "its certificate is not valid yet: compare the clocks"),
    ("extended key usage", "its certificate is not for servers"),
    ("InvalidContentType", "it does not speak TLS: it was started without --certs"),
    ("frame with invalid size", "it may want TLS: say --certs"),
];
/// What the other side finds wrong with this process: the last word of an alert.
const TOLD: [(&str, &str); 6] = [
    ("CertificateRequired", "it wants a certificate: say --certs"),
    ("UnknownCA", "this process's certificate is of another authority than its"),
    ("DecryptError", "this process's certificate is of another authority than its"),
    ("CertificateExpired", "this process's certificate has expired, or is not valid yet"),
    ("UnsupportedCertificate", "this process's certificate is not for callers"),
    ("BadCertificate", "it does not take this process's certificate"),
];

/// Adds to a failed handshake what it comes from, for people; nothing, if it is no such failure.
pub(super) fn explained(problem: &str) -> Option<String> {
    let hint = match problem.split_once("received fatal alert: ") {
        Some((_, alert)) => {
            TOLD.into_iter().find(|(sign, _)| alert.split(|c: char| !c.is_alphanumeric()).next() == Some(sign))
        }
        None => FOUND.into_iter().find(|(sign, _)| problem.contains(sign)),
    };
    hint.map(|(_, hint)| format!("{problem} ({hint})"))
}
