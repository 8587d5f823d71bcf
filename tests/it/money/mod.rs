//! The host's money: what was earned, whether ledger and chain agree, and what the operator
//! orders.

mod audit;
mod site;
