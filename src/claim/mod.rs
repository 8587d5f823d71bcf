//! Claims: what may be claimed now, and why not yet; when a session may be completed.
//!
//! Never does I/O and never looks at a clock: the chain's time is an argument. The rules mirror
//! docs/spec/contract.md sections 2 and 3; the chain has the last word (a dry run precedes every
//! signature).

mod completion;
mod plan;

pub use completion::{CompletionInput, CompletionPlan, plan_completion};
pub use plan::{ClaimPlan, ClaimRules, FeeEstimate, PlanInput, Wait, deadline, plan_claim};
