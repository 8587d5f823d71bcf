//! `tally`: the command line. A table of contents: read arguments, carry out the command.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tally::node::cli::{Cli, Task};
use tally::node::worker::cli as worker;
use tally::node::{commands, logging};

/// Threads for what would hold the runtime up: ledger reads, long prompts. They take turns with the
/// model's own threads, so a crowd of them would only be slower; what comes on top waits.
const BLOCKING_THREADS_MAX: usize = 16;

fn main() -> ExitCode {
    let arguments = worker::arguments(std::env::args_os());
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        // Pool managers log what a worker says last: one line, and no usage behind it.
        Err(error) if error.use_stderr() && worker::is_worker(&arguments) => {
            eprintln!("tally worker: {}", worker::one_line(&error));
            return ExitCode::FAILURE;
        }
        Err(error) => error.exit(),
    };
    let ended = start(cli);
    logging::flush();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tally: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<()> {
    // One TLS stack for the process; it fails only where one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // A worker's requests are few and its forward pass has threads of its own.
    let is_worker = matches!(cli.command, Some(Task::Worker(_)));
    let mut runtime = match is_worker {
        true => tokio::runtime::Builder::new_current_thread(),
        false => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.enable_all().max_blocking_threads(BLOCKING_THREADS_MAX).build();
    let runtime = runtime.context("cannot start the async runtime")?;
    let done = runtime.block_on(commands::run(cli));
    // A command has joined what it must: at most a model is being read still, for nobody.
    runtime.shutdown_background();
    Ok(done?)
}
