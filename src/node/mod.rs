//! Settings, wiring, tasks and shutdown; the commands of an operator.
//!
//! Never decides about money: it reads what the operator wants, starts the services and stops
//! them. The top layer: nothing imports it but `main.rs`.

pub mod cli;
pub mod settings;
