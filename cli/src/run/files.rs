//! Files to and from an instance's directory, streamed and checked by their SHA-256.

use super::words;
use crate::client::{Body, Client, frames, path, query, read_document};
use crate::exit::{Exit, Failure};
use crate::output::{tell, terminal};
use anyhow::Context;
use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::channel::Channel;
use hyper::Method;
use pronto_controller::api::types as api;
use sha2::{Digest, Sha256};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;

/// One read of a file.
const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks of a file under way at once.
const CHUNKS: usize = 4;
/// A node that has just taken an instance may need this long until it takes its files.
const TAKE_LIMIT: Duration = Duration::from_secs(30);
const RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// A copy in which nothing has moved for so long has failed. The controller gives up a silent node
/// sooner; this is for a silent controller.
const SILENCE_LIMIT: Duration = Duration::from_secs(120);
/// What a file that is brought from standard input may be written by.
const DEFAULT_MODE: u32 = 0o644;

/// A file in an instance's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remote {
    pub(crate) instance: String,
    pub(crate) path: String,
}

impl Remote {
    /// `INSTANCE:PATH`; anything with a slash before the colon is a file here.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (instance, path) = text.split_once(':')?;
        let remote = !instance.is_empty() && !path.is_empty() && !instance.contains('/');
        remote.then(|| Self {
            instance: instance.to_owned(),
            path: path.to_owned(),
        })
    }
}

/// A file that is brought along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Input {
    pub(crate) path: PathBuf,
    /// Its name in the working directory.
    pub(crate) name: String,
}

impl Input {
    pub(crate) fn new(path: &Path) -> Result<Self, Failure> {
        let unusable = |why: &str| Failure::usage(format!("input {} {why}", path.display()));
        let metadata = std::fs::metadata(path)
            .with_context(|| format!("can't read input {}", path.display()))
            .map_err(|error| Failure::caused(Exit::Usage, error))?;
        if !metadata.is_file() {
            return Err(unusable("is not a file").hint("pack a directory first: tar -czf"));
        }
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name
            .ok_or_else(|| unusable("has no name in UTF-8"))?
            .to_owned();
        Ok(Self {
            path: path.to_owned(),
            name,
        })
    }
}

/// The inputs of a run: those that were named, and with them the command itself if it is a script
/// here (`./job.sh`).
pub(crate) fn inputs(named: &[PathBuf], command: &[String]) -> Result<Vec<Input>, Failure> {
    if named.is_empty() {
        return Ok(Vec::new());
    }
    let mut inputs: Vec<Input> = named
        .iter()
        .map(|path| Input::new(path))
        .collect::<Result<_, _>>()?;
    inputs.extend(script(command)?);
    distinct(inputs)
}

/// `./job.sh` as an input, if it is a file here.
pub(crate) fn script(command: &[String]) -> Result<Option<Input>, Failure> {
    match command.first() {
        Some(program) if program.starts_with("./") && Path::new(program).is_file() => {
            let input = Input::new(Path::new(program))?;
            // `./a/b.sh` would lie in a directory of its own; only the plain case is meant.
            Ok((program[2..] == input.name).then_some(input))
        }
        _ => Ok(None),
    }
}

/// No two inputs may have one name: they meet in one directory.
pub(crate) fn distinct(inputs: Vec<Input>) -> Result<Vec<Input>, Failure> {
    let mut kept: Vec<Input> = Vec::with_capacity(inputs.len());
    for input in inputs {
        match kept.iter().find(|other| other.name == input.name) {
            None => kept.push(input),
            Some(other) if is_same_file(&other.path, &input.path) => {}
            Some(other) => {
                return Err(Failure::usage(format!(
                    "inputs {} and {} would have the same name",
                    other.path.display(),
                    input.path.display()
                )));
            }
        }
    }
    Ok(kept)
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let whole = |path: &Path| std::fs::canonicalize(path).ok();
    one == other || whole(one).is_some_and(|one| whole(other) == Some(one))
}

/// Brings a file (`-`: standard input) to an instance's directory.
pub(crate) async fn bring(
    client: &mut Client,
    source: &Path,
    target: &Remote,
    input: bool,
) -> Result<api::FileEnd, Failure> {
    let name = source
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("stdin");
    let to_path = match target.path.strip_suffix('/') {
        Some(directory) => format!("{directory}/{name}"),
        None if target.path == "." => name.to_owned(),
        None => target.path.clone(),
    };
    let unreadable = || format!("can't read {}", source.display());
    let (content, length, mode) = if source == Path::new("-") {
        // A node wants to know the length before it takes a file.
        let mut content = Vec::new();
        tokio::io::stdin()
            .read_to_end(&mut content)
            .await
            .with_context(unreadable)?;
        let length = content.len() as u64;
        (Content::Memory(content), length, DEFAULT_MODE)
    } else {
        let opened = tokio::fs::File::open(source).await;
        let file = opened
            .with_context(unreadable)
            .map_err(|error| Failure::caused(Exit::Usage, error))?;
        let metadata = file.metadata().await.with_context(unreadable)?;
        if !metadata.is_file() {
            return Err(
                Failure::usage(format!("{} is not a file", source.display()))
                    .hint("pack a directory first: tar -czf"),
            );
        }
        (
            Content::File(file),
            metadata.len(),
            metadata.permissions().mode() & 0o777,
        )
    };
    let asked = api::PutFileQuery {
        path: to_path,
        mode: Some(mode),
        input: input.then_some(true),
        tenant: client.tenant(),
    };
    let to = query(path(&["instances", &target.instance, "files"]), &asked)?;
    let (mut sender, body) = Channel::<Bytes, std::io::Error>::new(CHUNKS);
    let (progress, moved) = watch::channel(());
    let hashing = tokio::spawn(async move {
        let mut hash = Sha256::new();
        let mut content = content;
        let mut left = length;
        while left > 0 {
            match content.read().await {
                // It grew or shrank meanwhile: what was announced is what is sent, or it is cut.
                Ok(chunk) if chunk.is_empty() => {
                    sender.abort(std::io::Error::other("the file became shorter"));
                    return None;
                }
                Ok(mut chunk) => {
                    chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                    left -= chunk.len() as u64;
                    hash.update(&chunk);
                    if sender.send_data(chunk).await.is_err() {
                        return None;
                    }
                    progress.send_replace(());
                }
                Err(error) => {
                    sender.abort(error);
                    return None;
                }
            }
        }
        Some(hex(&hash.finalize()))
    });
    let body: Body = body.boxed();
    let sending = client.upload(Method::PUT, &to, Some(length), None, body);
    let response = unless_silent(sending, moved).await?;
    let end: api::FileEnd = read_document(response, &to).await?;
    if let Some(problem) = end.problem {
        return Err(Failure::new(Exit::Failed, problem));
    }
    let sent = hashing.await.ok().flatten();
    if sent.as_deref() != Some(end.sha256.as_str()) {
        let what = format!("{} arrived damaged: its checksum differs", source.display());
        return Err(Failure::new(Exit::Failed, what));
    }
    Ok(end)
}

/// Does the work, as long as something moves now and then.
async fn unless_silent<T>(
    work: impl Future<Output = Result<T, Failure>>,
    mut moved: watch::Receiver<()>,
) -> Result<T, Failure> {
    let mut work = std::pin::pin!(work);
    loop {
        let moved = timeout(SILENCE_LIMIT, moved.changed());
        tokio::select! {
            done = &mut work => return done,
            moved = moved => match moved {
                Ok(Ok(())) => {}
                // All was sent.
                Ok(Err(_)) => break,
                Err(_) => return Err(silent()),
            },
        }
    }
    timeout(SILENCE_LIMIT, work)
        .await
        .unwrap_or_else(|_| Err(silent()))
}

fn silent() -> Failure {
    let what = format!("nothing has moved for {SILENCE_LIMIT:?}");
    Failure::new(Exit::Unreachable, what)
}

enum Content {
    Memory(Vec<u8>),
    File(tokio::fs::File),
}

impl Content {
    async fn read(&mut self) -> std::io::Result<Bytes> {
        match self {
            Self::Memory(content) => Ok(Bytes::from(std::mem::take(content))),
            Self::File(file) => {
                let mut chunk = vec![0; CHUNK_BYTES];
                let length = file.read(&mut chunk).await?;
                chunk.truncate(length);
                Ok(Bytes::from(chunk))
            }
        }
    }
}

/// Fetches a file to `target`: a file, a directory, or `-` for standard output. Says how long it
/// was. A file appears under its name only when it is whole.
pub(crate) async fn fetch(
    client: &mut Client,
    source: &Remote,
    target: &Path,
) -> Result<u64, Failure> {
    let asked = api::FileQuery {
        path: source.path.clone(),
        tenant: client.tenant(),
    };
    let to = query(path(&["instances", &source.instance, "files"]), &asked)?;
    let mut frames = client.open(&to).await?;
    let mut into = Target::open(source, target)?;
    let mut hash = Sha256::new();
    let mut bytes = 0_u64;
    loop {
        let next = timeout(SILENCE_LIMIT, frames.next()).await;
        let Some((channel, data)) = next.unwrap_or_else(|_| Err(silent()))? else {
            break;
        };
        match channel {
            api::CHANNEL_FILE => {
                hash.update(&data);
                bytes += data.len() as u64;
                into.write(&data)?;
            }
            api::CHANNEL_END => {
                let end: api::FileEnd = frames::end(&data)?;
                if let Some(problem) = end.problem {
                    return Err(Failure::new(Exit::NotFound, problem));
                }
                if end.bytes != bytes || end.sha256 != hex(&hash.finalize()) {
                    let what = format!("{} arrived damaged: its checksum differs", source.path);
                    return Err(Failure::new(Exit::Failed, what));
                }
                into.finish()?;
                return Ok(bytes);
            }
            _ => {}
        }
    }
    Err(Failure::new(
        Exit::Unreachable,
        format!("{} was cut off", source.path),
    ))
}

/// Whether what is written there goes to somebody, and no file is made.
pub(crate) fn is_stream(target: &Path) -> bool {
    let special = |there: std::fs::Metadata| !there.is_file() && !there.is_dir();
    target == Path::new("-") || std::fs::metadata(target).is_ok_and(special)
}

/// Where a file is written to: a temporary name until it is whole, unless what has that name already
/// is not a file, as a device or a pipe.
struct Target {
    to: Box<dyn Write + Send>,
    /// Where it is written, and where it belongs.
    part: Option<(PathBuf, PathBuf)>,
}

impl Target {
    fn open(source: &Remote, target: &Path) -> Result<Self, Failure> {
        if target == Path::new("-") {
            return Ok(Self {
                to: Box::new(std::io::stdout()),
                part: None,
            });
        }
        let path = place(source, target)?;
        // A link stays a link: what it points to is replaced.
        let path = std::fs::canonicalize(&path).unwrap_or(path);
        let in_the_way = std::fs::metadata(&path).is_ok_and(|there| !there.is_file());
        let (written, part) = if in_the_way {
            (path, None)
        } else {
            let mut part = path.as_os_str().to_owned();
            part.push(format!(".{}.part", std::process::id()));
            let part = PathBuf::from(part);
            (part.clone(), Some((part, path)))
        };
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(part.is_some())
            .open(&written)
            .with_context(|| format!("can't write {}", written.display()))?;
        Ok(Self {
            to: Box::new(file),
            part,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.to.write_all(bytes).map_err(Failure::of_output)
    }

    fn finish(mut self) -> Result<(), Failure> {
        self.to.flush().map_err(Failure::of_output)?;
        if let Some((part, path)) = self.part.take() {
            std::fs::rename(&part, &path)
                .with_context(|| format!("can't write {}", path.display()))?;
        }
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some((part, _)) = &self.part {
            let _ = std::fs::remove_file(part);
        }
    }
}

/// The file that a fetched one becomes: in a directory, under its own name.
pub(crate) fn place(source: &Remote, target: &Path) -> Result<PathBuf, Failure> {
    if !target.is_dir() {
        return Ok(target.to_owned());
    }
    let name = Path::new(&source.path).file_name();
    Ok(target.join(name.ok_or_else(|| Failure::usage("the path names no file"))?))
}

/// Makes the directory that results are brought to. What would keep them out of it is found here,
/// before anything runs.
pub(crate) fn prepare_results(patterns: &[String], directory: &Path) -> Result<(), Failure> {
    if patterns.is_empty() {
        return Ok(());
    }
    if let Some(broken) = patterns.iter().find(|pattern| pattern.contains('\n')) {
        let what = format!("--output {broken:?} can't be fetched: a node names files line by line");
        return Err(Failure::usage(what).hint("a name without a line break can be"));
    }
    let made = match std::fs::metadata(directory) {
        Ok(there) if !there.is_dir() => Err(ErrorKind::NotADirectory.into()),
        _ => std::fs::create_dir_all(directory),
    };
    let probe = directory.join(format!(".pronto-{}.part", std::process::id()));
    made.and_then(|()| std::fs::write(&probe, ""))
        .and_then(|()| std::fs::remove_file(&probe))
        .with_context(|| format!("--output-dir {} can't be used", directory.display()))
        .map_err(|error| Failure::caused(Exit::Usage, error))
}

/// Fetches all files of an instance that match the patterns into a directory, keeping their paths.
pub(crate) async fn fetch_matches(
    client: &mut Client,
    id: Uuid,
    patterns: &[String],
    directory: &Path,
) -> Result<bool, Failure> {
    let begun = Instant::now();
    loop {
        match try_fetch_matches(client, id, patterns, directory).await {
            Err(failure) if failure.may_pass() && begun.elapsed() < TAKE_LIMIT => {
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            outcome => return outcome,
        }
    }
}

async fn try_fetch_matches(
    client: &mut Client,
    id: Uuid,
    patterns: &[String],
    directory: &Path,
) -> Result<bool, Failure> {
    let instance = id.to_string();
    let mut whole = true;
    for pattern in patterns {
        let asked = api::ListingQuery {
            pattern: Some(pattern.clone()),
            tenant: client.tenant(),
        };
        let to = query(path(&["instances", &instance, "listing"]), &asked)?;
        let listing: api::FileListing = client.get(&to).await?;
        if listing.paths.is_empty() {
            whole = false;
            let short = words::short(id);
            tell!("pronto: instance {short} left no file that matches '{pattern}'");
        }
        for path in listing.paths {
            let source = Remote {
                instance: instance.clone(),
                path,
            };
            match fetch_beneath(client, &source, directory).await {
                Ok(()) => {}
                // A name with a line break is listed as two; it must not cost the others.
                Err(failure) if failure.exit == Exit::NotFound => {
                    whole = false;
                    let (path, why) = (source.path, failure.words());
                    tell!("pronto: '{path}' was not fetched: {why}");
                    tell!("hint: a file with a line break in its name can't be");
                }
                Err(failure) => return Err(failure),
            }
        }
    }
    Ok(whole)
}

/// Fetches a file that a node has listed to its own path beneath a directory.
async fn fetch_beneath(
    client: &mut Client,
    source: &Remote,
    directory: &Path,
) -> Result<(), Failure> {
    let target = directory.join(inside(&source.path)?);
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)
            .with_context(|| format!("can't make {}", parent.display()))?;
    }
    let bytes = fetch(client, source, &target).await?;
    terminal::note(&format!("{} ({bytes} bytes)", target.display()));
    Ok(())
}

/// A path from a node, if it stays inside of the directory that it is joined to.
fn inside(path: &str) -> Result<&Path, Failure> {
    let relative = Path::new(path);
    let stays = relative
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if stays && !path.is_empty() {
        return Ok(relative);
    }
    Err(Failure::new(
        Exit::NotFound,
        "the node names a file outside of the instance's directory",
    ))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_copy_goes_on_as_long_as_something_moves() {
        let (progress, moved) = watch::channel(());
        let begun = tokio::time::Instant::now();
        let moving = tokio::spawn(async move {
            for _ in 0..3 {
                tokio::time::sleep(SILENCE_LIMIT / 2).await;
                progress.send_replace(());
            }
            std::future::pending::<()>().await;
            drop(progress);
        });
        let never = std::future::pending::<Result<(), Failure>>();
        let failure = unless_silent(never, moved).await.unwrap_err();
        assert!(failure.to_string().contains("nothing has moved"));
        assert_eq!(begun.elapsed(), SILENCE_LIMIT / 2 * 3 + SILENCE_LIMIT);
        moving.abort();
    }

    #[test]
    fn a_remote_file_is_told_from_one_here() {
        let remote = Remote {
            instance: "ab12".into(),
            path: "out/x".into(),
        };
        assert_eq!(Remote::parse("ab12:out/x"), Some(remote));
        for here in ["file", "./a:b", "/a:b", "x:", ":y"] {
            assert_eq!(Remote::parse(here), None, "{here}");
        }
    }

    #[test]
    fn a_node_can_not_write_outside_of_the_directory() {
        for bad in ["../x", "/etc/passwd", "a/../../b", "", "./a"] {
            assert!(inside(bad).is_err(), "{bad}");
        }
        assert!(inside("a/b.txt").is_ok());
    }

    #[test]
    fn a_directory_that_takes_no_results_is_named_with_the_reason() {
        let directory = std::env::temp_dir().join(format!("pronto-results-{}", std::process::id()));
        let patterns = ["*.out".to_owned()];
        prepare_results(&patterns, &directory.join("a/b")).unwrap();
        std::fs::write(directory.join("file"), "").unwrap();
        for (bad, why) in [
            ("file", "not a directory"),
            ("file/below", "ot a directory"),
        ] {
            let failure = prepare_results(&patterns, &directory.join(bad)).unwrap_err();
            let said = failure.to_string();
            assert_eq!(failure.exit, Exit::Usage);
            assert!(said.contains(bad) && said.contains(why), "{said}");
        }
        // Nobody may write there, root included.
        let failure = prepare_results(&patterns, Path::new("/proc")).unwrap_err();
        assert!(failure.to_string().contains("/proc"), "{failure}");
        prepare_results(&[], Path::new("/proc")).unwrap();
        let failure = prepare_results(&["a\nb".to_owned()], &directory).unwrap_err();
        assert!(failure.to_string().contains(r#""a\nb""#), "{failure}");
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn two_inputs_of_one_name_are_refused() {
        let input = |path: &str| Input {
            path: path.into(),
            name: "x".into(),
        };
        assert!(distinct(vec![input("a/x"), input("b/x")]).is_err());
        assert_eq!(distinct(vec![input("a/x"), input("a/x")]).unwrap().len(), 1);
    }
}
