//! Checkpoints in a bucket of an object store: S3 and what speaks like it, Google Cloud Storage, Azure.
//!
//! Objects appear whole or not at all, and nothing else is asked of the store: no rename, no locks, no listing that is newer
//! than what was asked for last. Files are written to the local disk, so that memory does not hold a shard twice, and sent in
//! parts. Credentials come from the environment, under the names that each vendor's own tools use, and are never written
//! anywhere. Requests are repeated for a while; what a store does not answer then is [`CheckpointError::Unreachable`].

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path as FilePath, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::StreamExt;
use object_store::{
    BackoffConfig, ClientOptions, Error, ObjectStore, ObjectStoreExt, ObjectStoreScheme, PutPayload, RetryConfig,
    WriteMultipart,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder,
    memory::InMemory,
    path::Path,
};
use tokio::runtime::{Builder, Runtime};
use url::Url;

use super::{CheckpointError, manifest::BlockFile, place::Place};

/// What an upload is sent in; stores take up to 10 000 parts, at least 5 MiB each but for the last.
const PART_BYTES: usize = 16 << 20;
/// Parts on their way at once.
const PARTS_AHEAD: usize = 4;
/// What a download is asked for in, so that each piece is repeated by itself.
const PIECE_BYTES: u64 = 64 << 20;
/// How long a connection may take, and how long a store may say nothing.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// For how long requests that fail are repeated.
const REPEAT_FOR: Duration = Duration::from_secs(20);

/// A part of a bucket.
#[derive(Clone, Debug)]
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    /// What the names of its objects begin with.
    prefix: Path,
    /// As a person writes it.
    url: String,
    /// Where files wait to be sent.
    staging: PathBuf,
}

/// What carries requests: they are made by threads that may block.
fn runtime() -> Result<&'static Runtime, String> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let build = || {
        // The only provider that is linked; if another has been installed, it does as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Builder::new_multi_thread();
        let built = builder.worker_threads(1).thread_name("object-store").enable_all().build();
        built.map_err(|problem| format!("cannot start the runtime: {problem}"))
    };
    RUNTIME.get_or_init(build).as_ref().map_err(Clone::clone)
}

/// Connects to the store that a URL names.
fn connect(url: &Url) -> Result<Arc<dyn ObjectStore>, String> {
    let retry = RetryConfig { backoff: BackoffConfig::default(), max_retries: 10, retry_timeout: REPEAT_FOR };
    // Plain HTTP is only spoken to an endpoint that the person names so.
    let options = ClientOptions::new().with_connect_timeout(CONNECT_WITHIN).with_allow_http(true);
    let options = options.with_timeout_disabled().with_read_timeout(ANSWER_WITHIN);
    let (scheme, _) = ObjectStoreScheme::parse(url).map_err(|_| KINDS.to_string())?;
    let url = url.as_str();
    let built: Result<Arc<dyn ObjectStore>, Error> = match scheme {
        ObjectStoreScheme::AmazonS3 => {
            let builder = AmazonS3Builder::from_env().with_client_options(options).with_retry(retry);
            if let Some(endpoint) = builder.get_config_value(&AmazonS3ConfigKey::Endpoint)
                && Url::parse(&endpoint).is_err()
            {
                return Err(format!(
                    "AWS_ENDPOINT_URL is {endpoint}, but must be an address such as https://host:9000"
                ));
            }
            builder.with_url(url).build().map(|store| Arc::new(store) as _)
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            let builder = GoogleCloudStorageBuilder::from_env().with_client_options(options).with_retry(retry);
            builder.with_url(url).build().map(|store| Arc::new(store) as _)
        }
        ObjectStoreScheme::MicrosoftAzure => {
            let builder = MicrosoftAzureBuilder::from_env().with_client_options(options).with_retry(retry);
            builder.with_url(url).build().map(|store| Arc::new(store) as _)
        }
        _ => return Err(KINDS.into()),
    };
    built.map_err(|problem| chain(&problem))
}

const KINDS: &str = "a place is a directory, or a URL that begins with s3://, gs:// or az://";

/// An error with what caused it, on one line: what the store itself says, if it says something.
fn chain(problem: &Error) -> String {
    let mut text = problem.to_string();
    let mut source = std::error::Error::source(problem);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    let inner = |tag: &str| {
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        Some(rest.split_once(&format!("</{tag}>"))?.0.to_string())
    };
    match (inner("Code"), inner("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        _ => {
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            HINTS
                .iter()
                .find(|(sign, _)| text.contains(sign))
                .map_or(text.clone(), |(_, hint)| format!("{hint} ({text})"))
        }
    }
}

/// What a person is to do, by what a store says without what it needs: it looks for credentials of the machine it runs on.
const HINTS: [(&str, &str); 3] = [
    ("169.254.169.254", "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ("metadata.google.internal", "no credentials: set GOOGLE_APPLICATION_CREDENTIALS"),
    ("Account must be specified", "no credentials: set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"),
];

impl Bucket {
    /// The bucket, or the part of one, that a URL names. `staging` is a local directory for files on their way.
    ///
    /// # Errors
    /// The URL names none, or what the store needs to be told is missing.
    pub fn open(text: &str, staging: &FilePath) -> Result<Bucket, CheckpointError> {
        let cannot = |problem: String| CheckpointError::Place { place: text.into(), problem };
        // What makes no sense may hold a secret, which is not repeated.
        let scheme = text.split(':').next().unwrap_or_default();
        let place = || format!("{scheme}://…");
        if text.contains('@') || text.contains('?') {
            let problem = "credentials belong into the environment, not into the URL".into();
            return Err(CheckpointError::Place { place: place(), problem });
        }
        let url = Url::parse(text);
        let url =
            url.map_err(|problem| CheckpointError::Place { place: place(), problem: format!("{problem}; {KINDS}") })?;
        let runtime = runtime().map_err(cannot)?;
        let entered = runtime.enter();
        let store = connect(&url).map_err(cannot)?;
        drop(entered);
        let prefix = ObjectStoreScheme::parse(&url).map_err(|problem| cannot(problem.to_string()))?.1;
        Ok(Bucket { store, prefix, url: text.trim_end_matches('/').into(), staging: staging.into() })
    }

    /// A bucket in this process's memory, for tests.
    pub fn in_memory(staging: &FilePath) -> Bucket {
        Bucket::of_store(Arc::new(InMemory::new()), staging)
    }

    /// All of any store.
    pub fn of_store(store: Arc<dyn ObjectStore>, staging: &FilePath) -> Bucket {
        Bucket { store, prefix: Path::default(), url: "store:/".into(), staging: staging.into() }
    }

    /// The part of it whose names begin so.
    pub fn below(&self, name: &str) -> Bucket {
        Bucket { prefix: self.prefix.clone().join(name), url: format!("{}/{name}", self.url), ..self.clone() }
    }

    fn object(&self, name: &str, file: &str) -> Path {
        self.prefix.clone().join(name).join(file)
    }

    fn url(&self, name: &str, file: &str) -> String {
        format!("{}/{name}/{file}", self.url)
    }

    /// Does something with the store, and waits for it: in a thread that may wait, whatever this one is.
    fn ask<T: Send>(
        &self,
        what: &'static str,
        object: String,
        ask: impl Future<Output = Result<T, Error>> + Send,
    ) -> Result<T, CheckpointError> {
        let runtime = match runtime() {
            Ok(runtime) => runtime,
            Err(problem) => return Err(CheckpointError::Unreachable { what, object, problem }),
        };
        let asked = std::thread::scope(|scope| scope.spawn(|| runtime.block_on(ask)).join());
        let Ok(answer) = asked else {
            let problem = "the request panicked".into();
            return Err(CheckpointError::Unreachable { what, object, problem });
        };
        answer.map_err(|problem| match problem {
            Error::NotFound { .. } if what == "read" => CheckpointError::Missing { object },
            problem => CheckpointError::Unreachable { what, object, problem: chain(&problem) },
        })
    }

    fn list(&self, name: &str) -> Result<Vec<(Path, u64)>, CheckpointError> {
        let prefix = self.prefix.clone().join(name);
        let object = format!("{}/{name}", self.url);
        self.ask("list", object, async {
            let mut found = Vec::new();
            let mut listing = self.store.list(Some(&prefix));
            while let Some(about) = listing.next().await {
                let about = about?;
                found.push((about.location, about.size));
            }
            Ok(found)
        })
    }

    fn delete(&self, objects: impl IntoIterator<Item = Path>) -> Result<(), CheckpointError> {
        for object in objects {
            let url = format!("{} ({object})", self.url);
            self.ask("remove", url, async {
                match self.store.delete(&object).await {
                    Err(Error::NotFound { .. }) => Ok(()),
                    result => result,
                }
            })?;
        }
        Ok(())
    }

    /// Sends a file in parts; what is not sent whole is not there.
    async fn send(&self, path: &FilePath, object: &Path) -> Result<(), Error> {
        let broken = |problem: io::Error| Error::Generic { store: "local disk", source: problem.into() };
        let mut file = File::open(path).map_err(broken)?;
        let bytes = file.metadata().map_err(broken)?.len();
        if bytes <= PART_BYTES as u64 {
            let mut whole = Vec::with_capacity(bytes as usize);
            file.read_to_end(&mut whole).map_err(broken)?;
            return self.store.put(object, whole.into()).await.map(drop);
        }
        let mut upload = WriteMultipart::new_with_chunk_size(self.store.put_multipart(object).await?, PART_BYTES);
        let mut buffer = vec![0; 1 << 20];
        loop {
            let ready = upload.wait_for_capacity(PARTS_AHEAD).await;
            match ready.and_then(|()| file.read(&mut buffer).map_err(broken)) {
                Ok(0) => return upload.finish().await.map(drop),
                Ok(read) => upload.write(&buffer[..read]),
                Err(problem) => {
                    // What was sent of it would be kept, and paid for.
                    let _ = upload.abort().await;
                    return Err(problem);
                }
            }
        }
    }

    /// Reads an object piece by piece.
    async fn receive(
        &self,
        object: &Path,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<io::Result<()>, Error> {
        let bytes = self.store.head(object).await?.size;
        let mut start = 0;
        while start < bytes {
            let end = bytes.min(start + PIECE_BYTES);
            if let Err(problem) = take(&self.store.get_range(object, start..end).await?) {
                return Ok(Err(problem));
            }
            start = end;
        }
        Ok(Ok(()))
    }
}

impl Place for Bucket {
    fn root(&self) -> String {
        self.url.clone()
    }

    fn of(&self, name: &str) -> String {
        format!("{}/{name}", self.url)
    }

    fn names(&self) -> Result<Vec<String>, CheckpointError> {
        let listing = self.ask("list", self.url.clone(), self.store.list_with_delimiter(Some(&self.prefix)))?;
        let names = listing.common_prefixes.iter().filter_map(|path| path.filename().map(String::from));
        Ok(names.collect())
    }

    fn files(&self, name: &str) -> Result<Vec<(String, u64)>, CheckpointError> {
        let found = self.list(name)?.into_iter();
        Ok(found.filter_map(|(path, bytes)| Some((path.filename()?.to_string(), bytes))).collect())
    }

    fn staged(&self, name: &str, file: &str) -> Result<PathBuf, CheckpointError> {
        let made = fs::create_dir_all(&self.staging);
        made.map_err(|problem| CheckpointError::Disk { what: "write", path: self.staging.clone(), problem })?;
        Ok(self.staging.join(format!("{name}--{file}")))
    }

    fn keep(&self, name: &str, file: &str) -> Result<(), CheckpointError> {
        let staged = self.staged(name, file)?;
        let sent = self.ask("write", self.url(name, file), self.send(&staged, &self.object(name, file)));
        let _ = fs::remove_file(&staged);
        sent
    }

    fn seal(&self, name: &str, file: &str, text: &str) -> Result<(), CheckpointError> {
        let object = self.object(name, file);
        let put = self.store.put(&object, PutPayload::from(text.as_bytes().to_vec()));
        self.ask("write", self.url(name, file), put).map(drop)
    }

    fn read(&self, name: &str, file: &str) -> Result<Vec<u8>, CheckpointError> {
        let object = self.object(name, file);
        let mut bytes = Vec::new();
        let read = self.receive(&object, |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        });
        let _ = self.ask("read", self.url(name, file), read)?;
        Ok(bytes)
    }

    fn check(&self, name: &str, file: &BlockFile) -> Result<(), CheckpointError> {
        let object = self.object(name, &file.file);
        let about = self.ask("read", self.url(name, &file.file), self.store.head(&object))?;
        file.compare(about.size, None).map_err(|problem| super::damaged(self.url(name, &file.file), problem))
    }

    fn fetch(&self, name: &str, file: &str, to: &FilePath) -> Result<(), CheckpointError> {
        let object = self.object(name, file);
        let cannot = |problem| CheckpointError::Disk { what: "write", path: to.into(), problem };
        let mut out = File::create(to).map_err(cannot)?;
        let written = self.ask("read", self.url(name, file), self.receive(&object, |piece| out.write_all(piece)));
        written?.and_then(|()| out.sync_all()).map_err(cannot)
    }

    fn rename(&self, name: &str, from: &str, to: &str) -> Result<(), CheckpointError> {
        let (source, target) = (self.object(name, from), self.object(name, to));
        self.ask("rename", self.url(name, from), async {
            match self.store.rename(&source, &target).await {
                Err(Error::NotFound { .. }) => Ok(()),
                result => result,
            }
        })
    }

    fn remove(&self, name: &str, files: &[String]) -> Result<(), CheckpointError> {
        self.delete(files.iter().map(|file| self.object(name, file)))
    }

    fn remove_all(&self, name: &str) -> Result<(), CheckpointError> {
        self.delete(self.list(name)?.into_iter().map(|(path, _)| path))
    }

    fn clear(&self) {
        let _ = fs::remove_dir_all(&self.staging);
    }
}
