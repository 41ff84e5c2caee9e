//! `launcher certs`: an authority of one's own, certificates for the machines of a cluster, and its secret.
//!
//! For development, and for clusters that have no authority yet. Names of files are those that Kubernetes and cert-manager
//! use, so that what they make can be used instead: `ca.crt`, `tls.crt`, `tls.key`, and `token` beside them.

use std::{
    fs,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use convoy_proto::{
    access::{Key, SECRET_BYTES, Secret, TokenRole},
    hex, process,
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::{args::CertsArgs, cli::say, outcome::Failure};

/// How long a certificate is good for.
const DAYS: i64 = 365;

/// Makes what `--certs` takes.
///
/// # Errors
/// Files that are there already, cannot be read or cannot be written, or a name that no certificate can have.
pub fn certs(args: &CertsArgs) -> Result<(), Failure> {
    let hosts = if args.hosts.is_empty() { usual_hosts() } else { args.hosts.clone() };
    let role: TokenRole = args.role.parse().map_err(|problem: String| Failure::Usage(format!("--role: {problem}")))?;
    match &args.from {
        Some(from) => make_from(from, &args.dir, &hosts, role)?,
        None => make(&args.dir, &hosts)?,
    }
    let what = if args.from.is_some() { format!("the token of a {role}") } else { "the cluster's secret".into() };
    let dir = args.dir.display();
    say(format_args!("{dir}: a certificate for {}, good for {DAYS} days, and {what}", hosts.join(", ")))?;
    match args.from {
        None => say(format_args!("no run needs {dir}/ca.key: keep it where none is, for `launcher certs --from`")),
        Some(_) => Ok(()),
    }
}

/// Makes an authority, a secret, and a certificate for a machine of these names.
///
/// # Errors
/// As [`certs`].
pub fn make(dir: &Path, hosts: &[String]) -> Result<(), Failure> {
    fs::create_dir_all(dir).map_err(|problem| cannot_write(dir, &problem))?;
    let authority = Authority::create()?;
    create(dir, "ca.key", &authority.key.serialize_pem(), Mode::Owner)?;
    let secret = Secret::new(random()?);
    fill(dir, &authority, hosts, &secret.reveal())
}

/// Makes a certificate for another machine, and a token of a role, with what [`make`] made.
///
/// # Errors
/// As [`certs`].
pub fn make_from(from: &Path, dir: &Path, hosts: &[String], role: TokenRole) -> Result<(), Failure> {
    fs::create_dir_all(dir).map_err(|problem| cannot_write(dir, &problem))?;
    fill(dir, &Authority::read(from)?, hosts, &read_secret(from)?.token(role).reveal())
}

fn fill(dir: &Path, authority: &Authority, hosts: &[String], token: &str) -> Result<(), Failure> {
    let (certificate, key) = authority.certify(hosts)?;
    create(dir, "ca.crt", &authority.certificate, Mode::All)?;
    create(dir, "tls.crt", &certificate, Mode::All)?;
    create(dir, "tls.key", &key, Mode::Owner)?;
    create(dir, "token", &format!("{token}\n"), Mode::Owner)
}

/// What a machine that is alone calls itself.
fn usual_hosts() -> Vec<String> {
    let mut hosts: Vec<_> = ["localhost", "127.0.0.1", "::1"].map(String::from).to_vec();
    let own = process::host_name();
    if !hosts.contains(&own) {
        hosts.push(own);
    }
    hosts
}

fn random() -> Result<[u8; SECRET_BYTES], Failure> {
    let mut bytes = [0; SECRET_BYTES];
    getrandom::fill(&mut bytes)
        .map_err(|problem| Failure::Environment(format!("the system gives no random numbers: {problem}")))?;
    Ok(bytes)
}

/// What signs certificates.
struct Authority {
    certificate: String,
    key: KeyPair,
}

fn unfit(problem: rcgen::Error) -> Failure {
    Failure::Usage(format!("cannot make a certificate: {problem}"))
}

impl Authority {
    fn create() -> Result<Authority, Failure> {
        let key = KeyPair::generate().map_err(unfit)?;
        let mut params = lasting(CertificateParams::default());
        // Two authorities have two names: so that a certificate of the other is known for what it is.
        let name = format!("Convoy cluster authority {}", hex(&random()?[..4]));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(unfit)?.pem();
        Ok(Authority { certificate, key })
    }

    fn read(dir: &Path) -> Result<Authority, Failure> {
        let certificate = read(&dir.join("ca.crt"))?;
        let path = dir.join("ca.key");
        let key = KeyPair::from_pem(&read(&path)?);
        let key = key.map_err(|problem| Failure::Usage(format!("{} is no key: {problem}", path.display())))?;
        Ok(Authority { certificate, key })
    }

    /// A certificate and its key, for callers and listeners alike.
    fn certify(&self, hosts: &[String]) -> Result<(String, String), Failure> {
        let key = KeyPair::generate().map_err(unfit)?;
        let mut params = lasting(CertificateParams::new(hosts).map_err(unfit)?);
        params.distinguished_name.push(DnType::CommonName, hosts[0].as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, &self.key).map_err(unfit)?;
        let certificate = params.signed_by(&key, &issuer).map_err(unfit)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

/// A certificate's time: from yesterday, for clocks differ.
fn lasting(mut params: CertificateParams) -> CertificateParams {
    let now = time::OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - time::Duration::days(1), now + time::Duration::days(DAYS));
    params
}

fn read_secret(dir: &Path) -> Result<Secret, Failure> {
    let path = dir.join("token");
    match Key::read(&read(&path)?) {
        Some(Key::Secret(secret)) => Ok(secret),
        Some(Key::Token(_)) => Err(Failure::Usage(format!(
            "{} is a token, which makes no others: --from needs the secret's",
            path.display()
        ))),
        None => Err(Failure::Usage(format!("{} holds neither a secret nor a token", path.display()))),
    }
}

/// The text of a file.
///
/// # Errors
/// It cannot be read.
pub fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|problem| Failure::Usage(format!("cannot read {}: {problem}", path.display())))
}

fn cannot_write(path: &Path, problem: &std::io::Error) -> Failure {
    Failure::Environment(format!("cannot write {}: {problem}", path.display()))
}

/// Who may read a file.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    All,
    Owner,
}

/// Writes a file that is not there yet: what others rely on is never replaced.
fn create(dir: &Path, name: &str, text: &str, mode: Mode) -> Result<(), Failure> {
    let path: PathBuf = dir.join(name);
    let mut options = fs::File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(if mode == Mode::Owner { 0o600 } else { 0o644 });
    }
    #[cfg(not(unix))]
    let _ = mode;
    match options.open(&path) {
        Err(problem) if problem.kind() == ErrorKind::AlreadyExists => {
            Err(Failure::Usage(format!("{} is there already: name another directory", path.display())))
        }
        opened => {
            opened.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|problem| cannot_write(&path, &problem))
        }
    }
}
