//! What several integration tests stand on. A test uses a part of it, hence the allowance.
#![allow(dead_code)]

pub mod anvil;
pub mod http;
pub mod ledger;
pub mod node;
pub mod proxy;
pub mod storm;
pub mod tiny;
pub mod variant;
pub mod worker;
pub mod ws;
