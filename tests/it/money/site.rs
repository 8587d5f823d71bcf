//! A data folder as a node leaves it, and the program run on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tally::billing::Entry;
use tally::ledger::Ledger;
use tally::ledger::sqlite::{LedgerBinding, SqliteLedger, SqliteOptions};
use tally::node::settings::{Inputs, InspectSettings};
use tempfile::TempDir;

use crate::support::anvil::{CHAIN_ID, Devnet, HOST};

/// The end of a run.
pub struct Run {
    pub ok: bool,
    pub out: String,
    pub err: String,
}

impl Run {
    /// What it printed, as one JSON object.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("{}\n{}", self.out, self.err))
    }
}

/// A home folder with settings for one chain.
pub struct Site {
    pub home: TempDir,
    pub env: BTreeMap<String, String>,
}

impl Site {
    /// Settings of a paid node on this chain.
    pub fn on(devnet: &Devnet) -> Self {
        let home = tempfile::tempdir().unwrap();
        let contracts = devnet.contracts;
        let env = [
            ("HOME", home.path().display().to_string()),
            ("TALLY_DATA_DIR", home.path().join("data").display().to_string()),
            ("TALLY_CHAIN_RPC_URLS", devnet.url.clone()),
            ("TALLY_CHAIN_ID", CHAIN_ID.to_string()),
            ("TALLY_CHAIN_MARKETPLACE", contracts.marketplace.to_string()),
            ("TALLY_CHAIN_MODEL_REGISTRY", contracts.model_registry.to_string()),
            ("TALLY_HOST_PRIVATE_KEY", HOST.key.to_owned()),
            ("TALLY_SETTLEMENT_POLL_MILLISECONDS", "20".to_owned()),
            ("TALLY_SETTLEMENT_CONFIRMATIONS", "1".to_owned()),
        ];
        let env = env.into_iter().map(|(name, text)| (name.to_owned(), text)).collect();
        Self { home, env }
    }

    /// As [`Self::on`], with a ledger that holds these entries.
    pub async fn with_ledger(devnet: &Devnet, entries: Vec<Entry>) -> Self {
        let site = Self::on(devnet);
        site.write_ledger(devnet, entries).await;
        site
    }

    pub async fn write_ledger(&self, devnet: &Devnet, entries: Vec<Entry>) {
        let path = self.ledger(devnet);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let contract = devnet.contracts.marketplace;
        let binding = LedgerBinding { chain_id: CHAIN_ID, contract, wallet: HOST.address() };
        let ledger = SqliteLedger::open(&path, SqliteOptions::new(binding)).unwrap();
        ledger.append(entries).await.unwrap();
    }

    pub fn ledger(&self, devnet: &Devnet) -> PathBuf {
        let folder = format!("chain-{CHAIN_ID}-{}", devnet.contracts.marketplace);
        self.data_dir().join(folder).join("ledger.sqlite3")
    }

    pub fn data_dir(&self) -> PathBuf {
        self.home.path().join("data")
    }

    pub fn set(&mut self, name: &str, text: &str) {
        self.env.insert(name.to_owned(), text.to_owned());
    }

    pub fn inspect(&self) -> InspectSettings {
        let env = self.env.clone();
        let dir = self.home.path().to_owned();
        InspectSettings::load(&Inputs { env, dir, ..Inputs::default() }).unwrap()
    }

    /// The program, awaited without holding up this runtime.
    pub async fn tally(&self, arguments: &[&str]) -> Run {
        let mut command = self.command(arguments);
        let ended = tokio::task::spawn_blocking(move || command.output()).await;
        let output = ended.unwrap().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Run { ok: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tally"));
        command.args(arguments).env_clear().envs(&self.env);
        command.current_dir(self.dir()).stdin(Stdio::null());
        command
    }

    fn dir(&self) -> &Path {
        self.home.path()
    }
}
