//! `tally`: the command line. A table of contents: read arguments, carry out the command.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tally::node::{cli::Cli, commands};

/// Threads for what would hold the runtime up: ledger reads, long prompts. They take turns with the
/// model's own threads, so a crowd of them would only be slower; what comes on top waits.
const BLOCKING_THREADS_MAX: usize = 16;

fn main() -> ExitCode {
    match start(Cli::parse()) {
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
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.enable_all().max_blocking_threads(BLOCKING_THREADS_MAX).build();
    let runtime = runtime.context("cannot start the async runtime")?;
    Ok(runtime.block_on(commands::run(cli))?)
}
