//! Settings, wiring, tasks and shutdown; the commands of an operator.
//!
//! Never decides about money: it reads what the operator wants, starts the services and stops
//! them. The top layer: nothing imports it but `main.rs`.

pub mod access;
pub mod audit;
pub mod cli;
pub mod commands;
pub mod console;
pub mod control;
pub mod doctor;
pub mod earnings;
pub mod file_hash;
pub mod keystore;
pub mod ledger_care;
pub mod lock;
pub mod logging;
pub mod metrics;
pub mod model_names;
pub mod model_pull;
pub mod models;
pub mod operator;
pub mod orders;
pub mod pause;
pub mod preflight;
pub mod registration;
pub mod serve;
pub mod settings;
mod settle_loop;
pub mod small_file;
mod start;
pub mod status;
pub mod tasks;
pub mod verify;
pub mod version;
pub mod wiring;
pub mod worker;
