//! `tally model pull`: fetches a model file from a hub.
//!
//! Never leaves a file under its final name that is not whole or has another hash than asked for:
//! it is fetched into a folder of its own, compared, and moved. An interrupted download goes on at
//! the last whole chunk. Relies on hf-hub for the transfer.

use std::path::{Path, PathBuf};

use hf_hub::api::tokio::{ApiBuilder, ApiError};
use hf_hub::{Repo, RepoType};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use super::file_hash::sha256_file;
use crate::units::Hash32;

/// Bytes of a chunk: what an interruption costs at most.
pub const CHUNK_BYTES: usize = 10_000_000;

/// What to fetch and where to put it.
#[derive(Debug, Clone)]
pub struct PullSpec {
    /// Repository, `owner/name`.
    pub repo: String,
    /// File in the repository; its last part names the file here.
    pub file: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// Folder to put it into.
    pub dir: PathBuf,
    /// The hash it must have.
    pub sha256: Option<Hash32>,
    /// The hub; `None`: hf-hub's own rule (`HF_ENDPOINT`, else the public hub).
    pub endpoint: Option<String>,
    /// Bytes of a chunk; [`CHUNK_BYTES`] but for tests.
    pub chunk_bytes: usize,
}

/// A file that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// Where.
    pub path: PathBuf,
    /// Its hash.
    pub sha256: Hash32,
    /// Whether it was here before: nothing was fetched then.
    pub was_here: bool,
}

/// The file could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// A name that could lead out of the folder, or none.
    #[error("{0:?} is no file of a repository: relative, without `..`")]
    Name(String),
    /// The transfer failed. What has arrived is kept.
    #[error("{file} from {repo}: {error}; run the same command again to go on where it stopped")]
    Transfer {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// What went wrong, causes included.
        error: String,
    },
    /// Another hash. The file was removed.
    #[error("{file}: SHA-256 is {found}, wanted {wanted}; the file was removed")]
    Hash {
        /// The file.
        file: String,
        /// Its hash.
        found: String,
        /// The hash asked for.
        wanted: String,
    },
    /// A file of this name is here with another hash. It was left alone.
    #[error(
        "{} is here already with SHA-256 {found}, wanted {wanted}; move it away",
        path.display()
    )]
    InTheWay {
        /// The file.
        path: PathBuf,
        /// Its hash.
        found: String,
        /// The hash asked for.
        wanted: String,
    },
    /// The file system refused.
    #[error("{}: {error}", path.display())]
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// What it said.
        error: std::io::Error,
    },
}

/// Fetches the file, or finds it here.
///
/// Shows a progress bar on a terminal's stderr.
///
/// # Errors
/// [`PullError`]; a failed transfer can be resumed by the same call.
pub async fn pull(spec: &PullSpec) -> Result<Pulled, PullError> {
    let path = spec.dir.join(file_name(&spec.file)?);
    if path.exists() {
        return already_here(spec, path).await;
    }
    let parts = spec.dir.join(".tally-pull").join(part_name(spec));
    let fetched = transfer(spec, &parts).await.map_err(|error| PullError::Transfer {
        repo: spec.repo.clone(),
        file: spec.file.clone(),
        error: chain_text(&error),
    })?;
    // The cache names the file through a link; what is moved must be the file itself.
    let fetched = std::fs::canonicalize(&fetched).map_err(disk(&fetched))?;
    let sha256 = hash(fetched.clone()).await?;
    if let Some(wanted) = spec.sha256
        && wanted != sha256
    {
        remove_parts(&parts)?;
        let (found, wanted) = (plain(sha256), plain(wanted));
        return Err(PullError::Hash { file: spec.file.clone(), found, wanted });
    }
    std::fs::rename(&fetched, &path).map_err(disk(&path))?;
    remove_parts(&parts)?;
    Ok(Pulled { path, sha256, was_here: false })
}

/// A hash as `sha256sum` shows it.
#[must_use]
pub fn plain(hash: Hash32) -> String {
    hex::encode(hash.bytes())
}

async fn already_here(spec: &PullSpec, path: PathBuf) -> Result<Pulled, PullError> {
    let sha256 = hash(path.clone()).await?;
    match spec.sha256 {
        Some(wanted) if wanted != sha256 => {
            Err(PullError::InTheWay { path, found: plain(sha256), wanted: plain(wanted) })
        }
        _ => Ok(Pulled { path, sha256, was_here: true }),
    }
}

async fn transfer(spec: &PullSpec, parts: &Path) -> Result<PathBuf, ApiError> {
    std::fs::create_dir_all(parts)?;
    // hf-hub works out the way from its link to the file and wants whole paths for that.
    let parts = std::fs::canonicalize(parts)?;
    let mut builder = ApiBuilder::from_env()
        .with_cache_dir(parts)
        .with_chunk_size(Some(spec.chunk_bytes))
        .with_max_files(1)
        .with_user_agent("tally", super::version::VERSION);
    if let Some(endpoint) = &spec.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    let repo = Repo::with_revision(spec.repo.clone(), RepoType::Model, spec.revision.clone());
    let repo = builder.build()?.repo(repo);
    repo.download_with_progress(&spec.file, bar()).await
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// The last part of the file's name; refuses names that lead elsewhere.
fn file_name(file: &str) -> Result<&str, PullError> {
    let is_part = |part: &str| !part.is_empty() && part != "." && part != "..";
    let is_fit = file.split('/').all(is_part) && !file.contains(['\\', '\0']);
    let name = file.rsplit('/').next().filter(|_| is_fit);
    name.ok_or_else(|| PullError::Name(file.to_owned()))
}

/// A folder name for what arrives, so that two downloads never share one.
fn part_name(spec: &PullSpec) -> String {
    let mut hasher = Sha256::new();
    for part in [&spec.repo, &spec.revision, &spec.file] {
        hasher.update(part);
        hasher.update([0]);
    }
    hex::encode(hasher.finalize()).chars().take(16).collect()
}

async fn hash(path: PathBuf) -> Result<Hash32, PullError> {
    let refuse = disk(&path);
    let work = tokio::task::spawn_blocking(move || sha256_file(&path));
    match work.await {
        Ok(result) => result.map_err(refuse),
        Err(error) => Err(refuse(std::io::Error::other(error))),
    }
}

fn remove_parts(parts: &Path) -> Result<(), PullError> {
    std::fs::remove_dir_all(parts).map_err(disk(parts))?;
    if let Some(folder) = parts.parent() {
        // Fails while another download has its folder there, which is fine.
        let _ = std::fs::remove_dir(folder);
    }
    Ok(())
}

fn disk(path: &Path) -> impl Fn(std::io::Error) -> PullError + use<> {
    let path = path.to_owned();
    move |error| PullError::Disk { path: path.clone(), error }
}

/// An error with its causes: the transport's own words hide in them.
fn chain_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_never_leads_out_of_the_folder() {
        assert_eq!(file_name("sub/model.gguf").unwrap(), "model.gguf");
        for bad in ["", "/etc/passwd", "../x", "a/../../x", "a/", "a//b", ".", "a\\..\\b"] {
            assert!(file_name(bad).is_err(), "{bad}");
        }
    }
}
