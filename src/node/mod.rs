//! Settings, wiring, tasks and shutdown; the commands of an operator.
//!
//! Never decides about money: it reads what the operator wants, starts the services and stops
//! them. The top layer: nothing imports it but `main.rs`.

pub mod access;
pub mod cli;
pub mod commands;
pub mod console;
pub mod doctor;
pub mod file_hash;
pub mod keystore;
pub mod ledger_care;
pub mod lock;
pub mod logging;
pub mod metrics;
pub mod model_pull;
pub mod preflight;
pub mod serve;
pub mod settings;
mod settle_loop;
mod start;
pub mod status;
pub mod tasks;
pub mod version;
pub mod wiring;
