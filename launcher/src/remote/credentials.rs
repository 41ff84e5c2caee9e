//! Certificates and a secret that live as long as one run: made by its launcher, handed to other machines through ssh, and
//! on disk only where nobody but their owner reads.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use convoy_proto::access::TokenRole;
use tempfile::TempDir;

use crate::{certs, outcome::Failure};

/// The files of a directory of certificates that another machine is handed.
pub const FILES: [&str; 4] = ["ca.crt", "tls.crt", "tls.key", "token"];

/// A run's own authority and secret. They are gone with this.
#[derive(Debug)]
pub struct Credentials {
    dir: PrivateDir,
}

/// A directory that only its owner reads. It is gone with this.
#[derive(Debug)]
pub struct PrivateDir {
    dir: TempDir,
    /// Locked for as long as it is needed: what clears old files away leaves it alone.
    _lock: fs::File,
}

impl PrivateDir {
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

fn cannot(problem: &std::io::Error) -> Failure {
    Failure::Environment(format!("cannot make a directory for certificates: {problem}"))
}

impl Credentials {
    /// For a launcher that others reach as one of these hosts.
    ///
    /// # Errors
    /// A directory that cannot be made, or a name that no certificate can have.
    pub fn new(hosts: &[String]) -> Result<Credentials, Failure> {
        let dir = private_dir().map_err(|problem| cannot(&problem))?;
        certs::make(&dir.path().join("own"), hosts)?;
        Ok(Credentials { dir })
    }

    /// What `--certs` takes.
    pub fn own(&self) -> PathBuf {
        self.dir.path().join("own")
    }

    /// What another machine is handed, as one line.
    ///
    /// # Errors
    /// A name that no certificate can have, or files that are gone.
    pub fn bundle(&self, hosts: &[String]) -> Result<String, Failure> {
        let dir = private_dir().map_err(|problem| cannot(&problem))?;
        let path = dir.path().join("node");
        certs::make_from(&self.own(), &path, hosts, TokenRole::Worker)?;
        serde_json::to_string(&read(&path)?).map_err(|problem| Failure::Environment(problem.to_string()))
    }
}

/// The files of a directory of certificates, by their names.
///
/// # Errors
/// One that cannot be read.
pub fn read(dir: &Path) -> Result<BTreeMap<String, String>, Failure> {
    let read = |name: &str| Ok((name.to_string(), certs::read(&dir.join(name))?));
    FILES.into_iter().map(read).collect()
}

fn private_dir() -> std::io::Result<PrivateDir> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o700));
    }
    let dir = builder.prefix("convoy-").tempdir()?;
    let lock = fs::File::open(dir.path())?;
    lock.lock()?;
    Ok(PrivateDir { dir, _lock: lock })
}

/// Puts what a machine was handed where processes find it. It is gone with what this gives.
///
/// # Errors
/// A line that is none, or a directory that cannot be written.
pub fn unpack(line: &str) -> Result<PrivateDir, Failure> {
    let files: BTreeMap<String, String> = serde_json::from_str(line)
        .map_err(|_| Failure::Usage("--certs -: standard input does not begin with a line of certificates".into()))?;
    let dir = private_dir().map_err(|problem| cannot(&problem))?;
    for name in FILES {
        let text = files.get(name).ok_or_else(|| Failure::Usage(format!("--certs -: {name} is missing")))?;
        // Its directory is private.
        fs::write(dir.path().join(name), text).map_err(|problem| cannot(&problem))?;
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use convoy_proto::process;

    use super::*;

    #[test]
    fn what_is_handed_over_fits_and_leaves_nothing_behind() {
        let ours = Credentials::new(&["127.0.0.1".into()]).unwrap();
        let line = ours.bundle(&["node1".into(), "10.0.0.2".into()]).unwrap();
        assert!(!line.contains('\n'));
        let theirs = unpack(&line).unwrap();
        let mode = fs::metadata(theirs.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "others could read it");
        let (own, node) = (process::load_security(Some(&ours.own())), process::load_security(Some(theirs.path())));
        let (own, node) = (own.unwrap(), node.unwrap());
        assert!(own.guard().is_some() && node.guard().is_none(), "the secret stays here");
        assert_eq!(own.tls.unwrap().authority, node.tls.as_ref().unwrap().authority);
        let _ = node.credentials(TokenRole::Worker);
        let paths = [ours.own(), theirs.path().to_path_buf()];
        drop((ours, theirs));
        assert!(paths.iter().all(|path| !path.exists()));
    }

    #[test]
    fn what_is_no_bundle_is_refused() {
        for line in ["", "x", "{}", "[]", r#"{"ca.crt":1}"#] {
            assert!(unpack(line).unwrap_err().to_string().contains("--certs -"), "{line}");
        }
    }
}
