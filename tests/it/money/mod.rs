//! The host's money: what was earned, whether ledger and chain agree, and what the operator
//! orders.

mod audit;
pub mod earned;
mod orders;
mod registration;
mod site;
mod withdrawals;
