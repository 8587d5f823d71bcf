//! `tally`: the command line. A table of contents: read arguments, carry out the command.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tally::node::{cli::Cli, commands};

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
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("cannot start the async runtime")?;
    Ok(runtime.block_on(commands::run(cli))?)
}
