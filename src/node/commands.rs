//! What each command does, in order; results to stdout, the rest to stderr.
//!
//! Never decides anything about money: commands read, or make files. `serve` is the node itself.

use super::cli::{
    AuditTask, By, Cli, EarningsTask, Flags, KeystoreTask, LedgerTask, ModelTask, Pull,
    RegisterTask, Report, Task, VerifyTask, WithdrawTask,
};
use super::model_pull::{self, CHUNK_BYTES, PullError, PullSpec};
use super::preflight::Findings;
use super::registration::Goal;
use super::settings::{Inputs, InspectSettings, Settings, SettingsError};
use super::{
    audit, console, doctor, earnings, keystore, ledger_care, logging, orders, pause, serve, status,
    verify, worker,
};
use crate::billing::earnings::GroupBy;
use crate::units::BlockNumber;
use crate::units::Hash32;

/// A command failed; its words are for the operator.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The settings do not hold.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The log.
    #[error(transparent)]
    Log(#[from] logging::LogError),
    /// Serving.
    #[error(transparent)]
    Serve(#[from] serve::ServeError),
    /// Something the doctor looked at makes pay impossible. All was printed.
    #[error("the node cannot be paid like this; see the failures above")]
    Unfit,
    /// The status could not be told.
    #[error(transparent)]
    Status(#[from] status::StatusError),
    /// The earnings could not be told.
    #[error(transparent)]
    Earnings(#[from] earnings::EarningsFailure),
    /// The audit could not be made.
    #[error(transparent)]
    Audit(#[from] audit::AuditError),
    /// Ledger and chain differ. All was printed.
    #[error("ledger and chain differ in {0} places; see the lines above")]
    Differs(usize),
    /// The check could not be made.
    #[error(transparent)]
    Verify(#[from] verify::VerifyError),
    /// A claim is wrong. All was printed.
    #[error("the claim is wrong; see the lines above")]
    Wrong,
    /// An order to the wallet.
    #[error(transparent)]
    Order(#[from] orders::OrderError),
    /// Pausing.
    #[error(transparent)]
    Pause(#[from] pause::PauseError),
    /// A hash on the command line is none.
    #[error("--sha256: found \"{0}\", wanted 64 hex digits")]
    Hash(String),
    /// The download.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// The key file.
    #[error(transparent)]
    Keystore(#[from] keystore::KeystoreError),
    /// The ledger's file.
    #[error(transparent)]
    LedgerCare(#[from] ledger_care::CareFailure),
    /// Worker mode.
    #[error(transparent)]
    Worker(#[from] worker::WorkerError),
    /// A settings file for a worker.
    #[error("--config: a worker reads no settings file; its arguments are all there is")]
    WorkerConfig,
    /// No command, and no launcher either.
    #[error("no command; see `tally --help`")]
    NoCommand,
}

/// Carries out a command.
///
/// # Errors
/// [`CommandError`].
pub async fn run(cli: Cli) -> Result<(), CommandError> {
    let inputs = |flags: Flags| flags.into_inputs(cli.config.clone());
    match cli.command {
        Some(Task::Serve(flags)) => serve_node(&inputs(flags)).await,
        Some(Task::Worker(_)) if cli.config.is_some() => Err(CommandError::WorkerConfig),
        Some(Task::Worker(task)) => Ok(worker::run(*task).await?),
        Some(Task::Doctor(report)) => examine(&inputs(report.flags.clone()), &report).await,
        Some(Task::Status(report)) => show_status(&inputs(report.flags.clone()), &report).await,
        Some(Task::Earnings(task)) => {
            show_earnings(&inputs(task.report.flags.clone()), &task).await
        }
        Some(Task::Audit(task)) => audit_ledger(&inputs(task.report.flags.clone()), &task).await,
        Some(Task::Verify(task)) => verify_claim(&inputs(task.report.flags.clone()), &task).await,
        Some(Task::Withdraw(task)) => withdraw(&inputs(task.report.flags.clone()), &task).await,
        Some(Task::Register(task)) => {
            register(&inputs(task.report.flags.clone()), &task, Goal::Registered).await
        }
        Some(Task::Update(task)) => {
            register(&inputs(task.report.flags.clone()), &task, Goal::Updated).await
        }
        Some(Task::Unregister(task)) => {
            register(&inputs(task.report.flags.clone()), &task, Goal::Unregistered).await
        }
        Some(Task::Pause(report)) => pause_node(&inputs(report.flags.clone()), &report, true).await,
        Some(Task::Resume(report)) => {
            pause_node(&inputs(report.flags.clone()), &report, false).await
        }
        Some(Task::Model(ModelTask::Pull(pull))) => pull_model(pull).await,
        Some(Task::Keystore(KeystoreTask::New(task))) => {
            say_made(&keystore::new(&task)?);
            Ok(())
        }
        Some(Task::Keystore(KeystoreTask::Import(task))) => {
            say_made(&keystore::import(&task)?);
            Ok(())
        }
        Some(Task::Keystore(KeystoreTask::ChangePassword(task))) => {
            say_made(&keystore::change_password(&task)?);
            Ok(())
        }
        Some(Task::Ledger(task)) => care_for_ledger(&task, inputs),
        None => {
            // A host launcher starts the node by environment alone.
            let inputs = inputs(Flags::default());
            if inputs.is_launcher() {
                serve_node(&inputs).await
            } else {
                Err(CommandError::NoCommand)
            }
        }
    }
}

async fn serve_node(inputs: &Inputs) -> Result<(), CommandError> {
    let settings = Settings::load(inputs)?;
    logging::install(&settings.log)?;
    for note in &settings.notes {
        tracing::warn!("{note}");
    }
    // Boxed: the node's future is large, and this one would carry it on the stack.
    Ok(Box::pin(serve::run(settings)).await?)
}

async fn examine(inputs: &Inputs, report: &Report) -> Result<(), CommandError> {
    let settings = match Settings::load(inputs) {
        Ok(settings) => settings,
        Err(error) => {
            let mut findings = Findings::default();
            for problem in &error.0 {
                findings.fail("settings", problem.to_string(), "docs/config.md lists all settings");
            }
            return say_findings(&findings, report);
        }
    };
    say_findings(&doctor::examine_all(&settings).await, report)
}

fn say_findings(findings: &Findings, report: &Report) -> Result<(), CommandError> {
    if report.json {
        console::line(doctor::to_json(findings));
    } else {
        doctor::lines(findings).iter().for_each(console::line);
    }
    if findings.has_failure() { Err(CommandError::Unfit) } else { Ok(()) }
}

async fn show_status(inputs: &Inputs, report: &Report) -> Result<(), CommandError> {
    let status = status::look(&InspectSettings::load(inputs)?).await?;
    if report.json {
        console::line(status::to_json(&status));
    } else {
        status::lines(&status).iter().for_each(console::line);
    }
    Ok(())
}

async fn show_earnings(inputs: &Inputs, task: &EarningsTask) -> Result<(), CommandError> {
    let by = match task.by {
        By::Day => GroupBy::Day,
        By::Model => GroupBy::Model,
        By::Job => GroupBy::Job,
    };
    let statement = earnings::look(&InspectSettings::load(inputs)?, by).await?;
    match (task.csv, task.report.json) {
        (true, _) => earnings::csv(&statement).iter().for_each(console::line),
        (false, true) => console::line(earnings::to_json(&statement)),
        (false, false) => earnings::lines(&statement).iter().for_each(console::line),
    }
    Ok(())
}

async fn audit_ledger(inputs: &Inputs, task: &AuditTask) -> Result<(), CommandError> {
    let from = task.from_block.map(BlockNumber::new);
    let verdict = audit::examine(&InspectSettings::load(inputs)?, from).await?;
    if task.report.json {
        console::line(audit::to_json(&verdict));
    } else {
        audit::lines(&verdict).iter().for_each(console::line);
    }
    match verdict.differences() {
        0 => Ok(()),
        count => Err(CommandError::Differs(count)),
    }
}

async fn verify_claim(inputs: &Inputs, task: &VerifyTask) -> Result<(), CommandError> {
    let verdict = Box::pin(verify::carry_out(inputs, task)).await?;
    if task.report.json {
        console::line(verify::to_json(&verdict));
    } else {
        verify::lines(&verdict).iter().for_each(console::line);
    }
    if verdict.is_ok() { Ok(()) } else { Err(CommandError::Wrong) }
}

async fn withdraw(inputs: &Inputs, task: &WithdrawTask) -> Result<(), CommandError> {
    let settings = InspectSettings::load(inputs)?;
    logging::install(&settings.log)?;
    // Boxed: it may hold a whole settlement.
    let answer = Box::pin(orders::withdraw(&settings, task.token)).await?;
    say_order(&answer, &task.report);
    Ok(())
}

async fn register(inputs: &Inputs, task: &RegisterTask, goal: Goal) -> Result<(), CommandError> {
    let settings = InspectSettings::load(inputs)?;
    logging::install(&settings.log)?;
    let registering = orders::Registering { goal, dry_run: task.dry_run };
    let answer = Box::pin(orders::register(&settings, registering)).await?;
    say_order(&answer, &task.report);
    Ok(())
}

fn say_order(answer: &serde_json::Value, report: &Report) {
    if report.json {
        console::line(answer);
    } else {
        orders::lines(answer).iter().for_each(console::line);
    }
}

async fn pause_node(inputs: &Inputs, report: &Report, pause: bool) -> Result<(), CommandError> {
    let settings = InspectSettings::load(inputs)?;
    let answer = pause::order(&settings.data_dir, pause).await?;
    if report.json {
        console::line(&answer);
        return Ok(());
    }
    let what = if pause { "paused: no new paid work" } else { "resumed" };
    let whose = if answer["running"] == true { "" } else { "; holds from the next start on" };
    console::line(format!("{what}{whose}"));
    let other = answer["pauses"].as_array().into_iter().flatten();
    other.filter_map(serde_json::Value::as_str).for_each(|why| {
        if !pause {
            console::line(format!("still no new work: {why}"));
        }
    });
    Ok(())
}

fn care_for_ledger(
    task: &LedgerTask,
    inputs: impl Fn(Flags) -> Inputs,
) -> Result<(), CommandError> {
    let settings = |flags: &Flags| InspectSettings::load(&inputs(flags.clone()));
    match task {
        LedgerTask::Backup(task) => {
            ledger_care::back_up(&settings(&task.flags)?, &task.to)?.iter().for_each(console::line);
        }
        LedgerTask::Restore(task) => {
            let said = ledger_care::restore(&settings(&task.flags)?, &task.from, task.replace)?;
            said.iter().for_each(console::line);
        }
        LedgerTask::Check(report) => {
            let found = ledger_care::check(&settings(&report.flags)?)?;
            if report.json {
                console::line(found.to_json());
            } else {
                found.lines().iter().for_each(console::line);
            }
            found.verdict()?;
        }
        LedgerTask::Retire(flags) => {
            ledger_care::retire(&settings(flags)?)?.iter().for_each(console::line);
        }
    }
    Ok(())
}

async fn pull_model(pull: Pull) -> Result<(), CommandError> {
    let sha256 = match pull.sha256 {
        Some(text) => Some(Hash32::parse(&text).ok_or(CommandError::Hash(text))?),
        None => None,
    };
    let spec = PullSpec {
        repo: pull.repo,
        file: pull.file,
        revision: pull.revision,
        dir: pull.dir,
        sha256,
        endpoint: None,
        chunk_bytes: CHUNK_BYTES,
    };
    let pulled = Box::pin(model_pull::pull(&spec)).await?;
    let verdict = if sha256.is_some() { "as wanted" } else { "not compared" };
    let here = if pulled.was_here { ", was here already" } else { "" };
    console::line(format!("SHA-256 {} ({verdict}{here})", model_pull::plain(pulled.sha256)));
    console::line(pulled.path.display());
    Ok(())
}

fn say_made(made: &keystore::MadeKeystore) {
    console::line(format!("address {}", made.address));
    console::line(made.path.display());
}
