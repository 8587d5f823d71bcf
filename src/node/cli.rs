//! The command line: which commands there are and which settings they take.
//!
//! Never reads a setting itself: flags become texts for [`super::settings`]. Secrets have no flag,
//! because every user of a machine can read another's command line. Relies on the settings' list
//! for names and help, so that neither can be forgotten here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, Parser, Subcommand, ValueEnum};

use super::control::token;
use super::settings::catalog::{Fallback, SETTINGS, Setting};
use super::settings::{Inputs, Kind};
use super::version;
use super::worker::cli::WorkerTask;
use crate::units::Address;

/// Host node of a blockchain-paid LLM marketplace.
#[derive(Parser, Clone)]
#[command(name = "tally", version = version::text(), about, propagate_version = true)]
pub struct Cli {
    /// Settings file; by default TALLY_CONFIG, else ./tally.toml where there is one.
    #[arg(long, global = true, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Task>,
}

/// What the program can do.
#[derive(Subcommand, Clone)]
pub enum Task {
    /// Serve clients until a stop signal.
    Serve(Flags),
    /// Serve one model to the orchestrator of a pool manager, without pay and without a chain.
    Worker(Box<WorkerTask>),
    /// Check the settings, the chain, the registry and the wallet; exit code 1 on a failure.
    Doctor(Report),
    /// Show sessions, unclaimed tokens, claims and earnings. Works while the node runs.
    Status(Report),
    /// Show what the recorded work earned, by day, model or job. Works while the node runs.
    Earnings(EarningsTask),
    /// Prove the ledger against the chain line by line; exit code 1 on a difference.
    Audit(AuditTask),
    /// Check a claim by its blob: root, sum, signature, seeds and, with the model's weights, every
    /// token; exit code 1 where something is wrong.
    Verify(Box<VerifyTask>),
    /// Withdraw earnings, and move them on to the cold address where one is set.
    Withdraw(WithdrawTask),
    /// Enter this host in the node registry, or bring its entry up to date.
    Register(RegisterTask),
    /// Bring this host's entry in the node registry up to date.
    Update(RegisterTask),
    /// Remove this host from the node registry; its stake comes back.
    Unregister(RegisterTask),
    /// Take no new paid work; running answers finish and claims go on. Survives restarts.
    Pause(Report),
    /// Take paid work again.
    Resume(Report),
    /// Fetch model files.
    #[command(subcommand)]
    Model(ModelTask),
    /// Make key files.
    #[command(subcommand)]
    Keystore(KeystoreTask),
    /// Back up, restore, check and put away the ledger.
    #[command(subcommand)]
    Ledger(LedgerTask),
}

/// A command that prints a report.
#[derive(Args, Clone)]
pub struct Report {
    /// Print one JSON object instead of lines.
    #[arg(long)]
    pub json: bool,
    /// The settings.
    #[command(flatten)]
    pub flags: Flags,
}

/// How earnings are shown.
#[derive(Args, Clone)]
pub struct EarningsTask {
    /// What a row is about.
    #[arg(long, value_enum, default_value = "job")]
    pub by: By,
    /// Print comma-separated values with a header.
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
    /// How it is printed, and the settings.
    #[command(flatten)]
    pub report: Report,
}

/// What a row of earnings is about.
#[derive(ValueEnum, Clone, Copy)]
pub enum By {
    /// A day, UTC.
    Day,
    /// A model.
    Model,
    /// A job.
    Job,
}

/// What is audited.
#[derive(Args, Clone)]
pub struct AuditTask {
    /// Block from which the chain's events are compared; by default the one of the ledger's first
    /// claim.
    #[arg(long, value_name = "BLOCK")]
    pub from_block: Option<u64>,
    /// How it is printed, and the settings.
    #[command(flatten)]
    pub report: Report,
}

/// Which claim is verified, and against what.
#[derive(Args, Clone)]
pub struct VerifyTask {
    /// The claim's blob, as the host served it.
    #[arg(long, value_name = "PATH", required_unless_present = "job", conflicts_with = "job")]
    pub file: Option<PathBuf>,
    /// A job of this node's own ledger, with the proof bytes that were sent.
    #[arg(long, value_name = "JOB")]
    pub job: Option<u64>,
    /// Take the claim from the chain of the settings (chain.rpc_urls, chain.id, chain.marketplace):
    /// its proof bytes, its host, and what the contract has counted.
    #[arg(long, conflicts_with_all = ["proof", "claimed_at"])]
    pub on_chain: bool,
    /// Block from which the job's claims are looked for; by default 10,000 blocks before the last.
    #[arg(long, value_name = "BLOCK", requires = "on_chain")]
    pub from_block: Option<u64>,
    /// Which claim of the job; by default the last one.
    #[arg(long, value_name = "SEQ", requires = "job")]
    pub seq: Option<u32>,
    /// Weights (GGUF, or a folder of safetensors) that derive the turns of that model again; may
    /// be given several times. Without any, no token is derived.
    #[arg(long = "weights", value_name = "PATH")]
    pub weights: Vec<PathBuf>,
    /// The claim's proof bytes in hex, or @ and a file with them.
    #[arg(long, value_name = "HEX", conflicts_with = "job")]
    pub proof: Option<String>,
    /// Who must have signed the claim: the host, or the user's session key.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub signer: Option<Address>,
    /// Where it must have been claimed.
    #[arg(long, value_name = "CHAIN_ID:MARKETPLACE", value_parser = place)]
    pub claimed_at: Option<(u64, Address)>,
    /// What the client read: a JSON object of turn numbers and texts.
    #[arg(long, value_name = "PATH")]
    pub texts: Option<PathBuf>,
    /// Derive each turn with this chance only, at least one.
    #[arg(long, value_name = "SHARE", default_value_t = 1.0)]
    pub sample: f64,
    /// Which turns a sample takes; any number, the same for the same turns.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub sample_seed: u64,
    /// How it is printed, and the settings.
    #[command(flatten)]
    pub report: Report,
}

fn address(text: &str) -> Result<Address, String> {
    Address::parse(text).ok_or_else(|| "wanted an address of 40 hex digits".to_owned())
}

fn place(text: &str) -> Result<(u64, Address), String> {
    let parts = text.split_once(':');
    let place =
        parts.and_then(|(id, marketplace)| Some((id.parse().ok()?, Address::parse(marketplace)?)));
    place.ok_or_else(|| "wanted a chain id, a colon and the marketplace's address".to_owned())
}

/// What is withdrawn.
#[derive(Args, Clone)]
pub struct WithdrawTask {
    /// The currency: `native`, or an ERC-20's address.
    #[arg(long, default_value = "native", value_name = "CURRENCY", value_parser = currency)]
    pub token: Address,
    /// How it is printed, and the settings.
    #[command(flatten)]
    pub report: Report,
}

/// How the registry is written.
#[derive(Args, Clone)]
pub struct RegisterTask {
    /// Only print the calls that would be sent.
    #[arg(long)]
    pub dry_run: bool,
    /// How it is printed, and the settings.
    #[command(flatten)]
    pub report: Report,
}

fn currency(text: &str) -> Result<Address, String> {
    token(text).ok_or_else(|| "wanted native or an address of 40 hex digits".to_owned())
}

/// Commands about model files.
#[derive(Subcommand, Clone)]
pub enum ModelTask {
    /// Download a file from a hub (HF_ENDPOINT names another one); an interrupted download goes
    /// on where it stopped. The last line printed is the file's path.
    Pull(Pull),
}

/// What to download.
#[derive(Args, Clone)]
pub struct Pull {
    /// Repository, for example bartowski/SmolLM2-135M-Instruct-GGUF.
    pub repo: String,
    /// File in the repository.
    pub file: String,
    /// Folder to put it into.
    #[arg(long, default_value = "models", value_name = "PATH")]
    pub dir: PathBuf,
    /// SHA-256 that the file must have; without it, the hash is printed and not compared.
    #[arg(long, value_name = "HEX")]
    pub sha256: Option<String>,
    /// Branch, tag or commit.
    #[arg(long, default_value = "main", value_name = "NAME")]
    pub revision: String,
}

/// Commands about key files.
#[derive(Subcommand, Clone)]
pub enum KeystoreTask {
    /// Make a new key and encrypt it into a file.
    New(NewKeystore),
    /// Encrypt a key you have into a file; it is asked for, or read from --key-file.
    Import(ImportKeystore),
    /// Encrypt the key of a file anew under another password. The key and its address stay.
    ChangePassword(ChangePassword),
}

/// A key file whose password changes.
#[derive(Args, Clone)]
pub struct ChangePassword {
    /// The key file.
    #[arg(value_name = "PATH")]
    pub keystore: PathBuf,
    /// File whose first line is the present password; without it, it is asked for.
    #[arg(long, value_name = "PATH")]
    pub password_file: Option<PathBuf>,
    /// File whose first line is the new password; without it, it is asked for.
    #[arg(long, value_name = "PATH")]
    pub new_password_file: Option<PathBuf>,
}

/// Commands about the ledger's file.
#[derive(Subcommand, Clone)]
pub enum LedgerTask {
    /// Copy the ledger into a new file, while the node runs or not, and read the copy back.
    Backup(BackUp),
    /// Put a backup in the ledger's place, after reading all of it. The node must be stopped.
    Restore(Restore),
    /// Read the whole ledger and make every sum anew; exit code 1 on a fault. Works while the node
    /// runs.
    Check(Report),
    /// Put the finished ledger of this wallet away, so that another key can begin its own. The
    /// node must be stopped.
    Retire(Flags),
}

/// Where a backup goes.
#[derive(Args, Clone)]
pub struct BackUp {
    /// The new file; it is never overwritten.
    #[arg(long, value_name = "PATH")]
    pub to: PathBuf,
    /// The settings.
    #[command(flatten)]
    pub flags: Flags,
}

/// Which backup is restored.
#[derive(Args, Clone)]
pub struct Restore {
    /// The backup; it is only read.
    #[arg(long, value_name = "PATH")]
    pub from: PathBuf,
    /// Move a ledger aside that holds entries the backup lacks, or that cannot be read.
    #[arg(long)]
    pub replace: bool,
    /// The settings.
    #[command(flatten)]
    pub flags: Flags,
}

/// Where a key file goes and how it is locked.
#[derive(Args, Clone)]
pub struct NewKeystore {
    /// Folder of the key file.
    #[arg(long, default_value = "keystore", value_name = "PATH")]
    pub dir: PathBuf,
    /// File whose first line is the password; without it, the password is asked for.
    #[arg(long, value_name = "PATH")]
    pub password_file: Option<PathBuf>,
}

/// A key to encrypt.
#[derive(Args, Clone)]
pub struct ImportKeystore {
    /// Where it goes.
    #[command(flatten)]
    pub target: NewKeystore,
    /// File whose first line is the key, `-` for standard input; without it, the key is asked for.
    #[arg(long, value_name = "PATH")]
    pub key_file: Option<PathBuf>,
}

/// Settings given as flags: texts by the setting's key.
#[derive(Clone, Default)]
pub struct Flags(BTreeMap<&'static str, String>);

impl Flags {
    /// These flags with the process's environment and folder.
    #[must_use]
    pub fn into_inputs(self, config: Option<PathBuf>) -> Inputs {
        Inputs { flags: self.0, config, ..Inputs::from_process() }
    }
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        SETTINGS.iter().filter_map(argument).fold(command, Command::arg)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let flagged = SETTINGS.iter().filter(|setting| setting.flag.is_some());
        let text = |setting: &'static Setting| {
            matches.get_one::<String>(setting.key).map(|text| (setting.key, text.clone()))
        };
        Ok(Self(flagged.filter_map(text).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.append(&mut Self::from_arg_matches(matches)?.0);
        Ok(())
    }
}

/// The flag of a setting; `None` for secrets.
fn argument(setting: &'static Setting) -> Option<Arg> {
    let flag = setting.flag?;
    let fallback = match setting.fallback {
        Fallback::Text("") | Fallback::None => String::new(),
        Fallback::Text(text) => format!(", default {text}"),
        Fallback::Computed(how) => format!(", default: {how}"),
        Fallback::Required(_) => ", required for a paid node".to_owned(),
    };
    let wanted = setting.kind.wanted();
    let help = format!("{} [{wanted}{fallback}; {}]", setting.about, setting.env);
    let argument = Arg::new(setting.key).long(flag).help(help).value_name("VALUE");
    Some(match setting.kind {
        Kind::Switch => argument.num_args(0..=1).require_equals(true).default_missing_value("true"),
        _ => argument,
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_secret_has_a_flag() {
        for secret in ["--host-password=x", "--host-private-key=x"] {
            let parsed = Cli::try_parse_from(["tally", "serve", secret]);
            assert!(parsed.is_err(), "{secret}");
        }
    }

    #[test]
    fn a_switch_needs_no_value_and_takes_one() {
        for (argument, expected) in [("--free", "true"), ("--free=false", "false")] {
            let cli = Cli::try_parse_from(["tally", "serve", argument]).unwrap();
            let Some(Task::Serve(flags)) = cli.command else { panic!("not serve") };
            assert_eq!(flags.0.get("free").map(String::as_str), Some(expected));
        }
    }
}
