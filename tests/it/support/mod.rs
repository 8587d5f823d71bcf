//! What tests share.

pub mod http;
pub mod ledger;
pub mod node;
pub mod ws;
