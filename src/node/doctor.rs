//! `tally doctor`: everything a node needs, looked at and said, with remedies.
//!
//! Never starts anything and never writes. Prints what the preflight of `tally serve` checks, and
//! what serving itself would find out: key, weight file, reachability.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tally_engine::ModelFiles;

use super::file_hash::sha256_model;
use super::model_pull::plain;
use super::preflight::{self, Finding, Findings, Grade, Subject, examine};
use super::settings::{ChainSettings, KeySource, Settings};
use super::{access, pause};
use crate::chain::registry::Registry;
use crate::units::Hash32;

/// Longest wait for our own registered address to answer.
const REACH_TIMEOUT: Duration = Duration::from_secs(10);

/// Looks at everything. Reads the whole weight file and the network.
pub async fn examine_all(settings: &Settings) -> Findings {
    let mut findings = Findings::default();
    let weights = weights(settings, &mut findings).await;
    if pause::is_paused(&settings.data_dir) {
        let remedy = "`tally resume` takes paid work again";
        findings.warn("pause", "the operator has paused this node: no new paid work", remedy);
    }
    match (&settings.chain, &settings.key) {
        (Some(chain), Some(key)) => paid(settings, (chain, key), weights, &mut findings).await,
        _ => findings.warn("chain", "none: this node serves without pay", "drop --free to be paid"),
    }
    findings
}

/// Hashes of all models' weights; `None` where one cannot be read.
async fn weights(settings: &Settings, findings: &mut Findings) -> Option<Vec<Hash32>> {
    let mut hashes = Vec::new();
    for model in settings.model.all() {
        hashes.push(weights_of(model.path, findings).await);
    }
    hashes.into_iter().collect()
}

async fn weights_of(path: PathBuf, findings: &mut Findings) -> Option<Hash32> {
    let shown = path.display().to_string();
    let open = move || ModelFiles::open(&path).map(|files| sha256_model(&files));
    let hashed = tokio::task::spawn_blocking(open).await;
    match hashed {
        Ok(Ok(hash)) => {
            findings.ok("weights", format!("{shown}, SHA-256 {}", plain(hash)));
            Some(hash)
        }
        Ok(Err(error)) => {
            let remedy = "set model.path; `tally model pull REPO FILE` fetches a file";
            findings.fail("weights", format!("{shown}: {error}"), remedy);
            None
        }
        Err(error) => {
            findings.fail("weights", format!("{shown}: {error}"), "run it again");
            None
        }
    }
}

async fn paid(
    settings: &Settings,
    (chain, key): (&ChainSettings, &KeySource),
    weights: Option<Vec<Hash32>>,
    findings: &mut Findings,
) {
    let wallet = match access::open_wallet(key) {
        Ok(wallet) => wallet,
        Err(error) => {
            let remedy = "check host.keystore and its password; `tally keystore new` makes one";
            return findings.fail("key", error.to_string(), remedy);
        }
    };
    let chain = match access::connect(chain, wallet).await {
        Ok(chain) => chain,
        Err(error) => {
            let remedy = "check chain.rpc_urls, chain.id and chain.marketplace";
            return findings.fail("chain", error.to_string(), remedy);
        }
    };
    findings.ok("key", format!("of {}", chain.host()));
    preflight::endpoints(&chain.endpoints().await, findings);
    // Without its file no model agrees with the registry; that failure is noted already.
    let has_weights = weights.is_some();
    let without = || vec![Hash32::ZERO; settings.model.all().len()];
    let weights_sha256 = &weights.unwrap_or_else(without)[..];
    let subject = Subject { chain: &chain, registry: &chain, settings, weights_sha256 };
    let more = examine(&subject).await;
    let is_doubled = |finding: &Finding| !has_weights && finding.check == "model";
    findings.0.extend(more.0.into_iter().filter(|finding| !is_doubled(finding)));
    if let Ok(standing) = chain.host_standing().await
        && !standing.api_url.is_empty()
    {
        reach(&standing.api_url, findings).await;
    }
}

/// Asks our registered address for its health, as a client would.
pub(super) async fn reach(url: &str, findings: &mut Findings) {
    const CHECK: &str = "reachability";
    let remedy = "start the node, open the port, or correct the registered address";
    let health = format!("{}/health", url.trim_end_matches('/'));
    let client = match reqwest::Client::builder().timeout(REACH_TIMEOUT).build() {
        Ok(client) => client,
        Err(error) => return findings.warn(CHECK, error.to_string(), "check the TLS set-up"),
    };
    match client.get(&health).send().await {
        Ok(answer) if answer.status().is_success() => {
            findings.ok(CHECK, format!("{health} answers"))
        }
        Ok(answer) => {
            findings.warn(CHECK, format!("{health} answers {}", answer.status()), remedy);
        }
        Err(error) => {
            let why = error.without_url();
            findings.warn(CHECK, format!("{health} does not answer: {why}"), remedy);
        }
    }
}

/// The report as lines.
#[must_use]
pub fn lines(findings: &Findings) -> Vec<String> {
    let line = |finding: &Finding| {
        let grade = word(finding.grade);
        let first = format!("{grade:<8} {:<13} {}", finding.check, finding.found);
        let remedy = format!("{:<22} → {}", "", finding.remedy);
        [Some(first), (!finding.remedy.is_empty()).then_some(remedy)]
    };
    findings.0.iter().flat_map(line).flatten().collect()
}

/// The report as one JSON object.
#[must_use]
pub fn to_json(findings: &Findings) -> Value {
    let each = |finding: &Finding| {
        json!({
            "check": finding.check,
            "grade": word(finding.grade),
            "found": finding.found,
            "remedy": finding.remedy,
        })
    };
    let all: Vec<_> = findings.0.iter().map(each).collect();
    json!({"ok": !findings.has_failure(), "findings": all})
}

const fn word(grade: Grade) -> &'static str {
    match grade {
        Grade::Ok => "ok",
        Grade::Warning => "warning",
        Grade::Unanswered | Grade::Failure => "failure",
    }
}
