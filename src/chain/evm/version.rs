//! Versions of the marketplace, and how a deployment tells its own.
//!
//! Never guesses: the claim's selector in the bytecode and the width of `sessionJobs` have to
//! agree, and a pin cannot overrule what is seen. Relies on docs/spec/contract.md section 1.

use std::collections::BTreeSet;

use alloy::sol_types::SolCall;

use super::bindings::{completeSessionJobCall, proof_system, sessionJobsCall};

/// A shape of the marketplace's interface (docs/spec/contract.md section 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ContractVersion {
    /// 14–24 September 2025.
    V3a,
    /// From 24 September 2025; the default.
    V3,
    /// October 2025.
    V4,
    /// January 2026.
    V5,
    /// Mid January 2026.
    V6,
    /// Since February 2026.
    V7,
}

/// A function's four bytes.
pub(super) type Selector = [u8; 4];

impl ContractVersion {
    /// Every version, oldest first.
    pub const ALL: [Self; 6] = [Self::V3a, Self::V3, Self::V4, Self::V5, Self::V6, Self::V7];

    /// Its name: `v3a` to `v7`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V3a => "v3a",
            Self::V3 => "v3",
            Self::V4 => "v4",
            Self::V5 => "v5",
            Self::V6 => "v6",
            Self::V7 => "v7",
        }
    }

    /// The version of that name, for an operator's pin.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.name() == name)
    }

    /// Selector of its `submitProofOfWork`.
    pub(super) const fn claim_selector(self) -> Selector {
        match self {
            Self::V3a | Self::V3 => [0xc8, 0xc6, 0x64, 0xee],
            Self::V4 => [0xac, 0xe0, 0x83, 0xb3],
            Self::V5 => [0x8d, 0xbe, 0x53, 0xaa],
            Self::V6 => [0x33, 0x38, 0xf1, 0xe5],
            Self::V7 => [0x7c, 0x5c, 0xb5, 0x61],
        }
    }
}

impl std::fmt::Display for ContractVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What the code at an address looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Look {
    /// It has a claim function of these versions and the rest of a marketplace.
    Marketplace(Vec<ContractVersion>),
    /// It is the proof system.
    ProofSystem,
    /// It is neither. Names what it lacks.
    Other(Vec<&'static str>),
}

/// Judges code by its selectors.
pub(super) fn look(code: &[u8]) -> Look {
    let found = selectors(code);
    let has = |selector: Selector| found.contains(&selector);
    let versions = ContractVersion::ALL.into_iter().filter(|v| has(v.claim_selector()));
    let versions: Vec<_> = versions.collect();
    let mut missing = Vec::new();
    if versions.is_empty() {
        missing.push("submitProofOfWork (of any version)");
    }
    if !has(sessionJobsCall::SELECTOR) {
        missing.push("sessionJobs(uint256)");
    }
    if !has(completeSessionJobCall::SELECTOR) {
        missing.push("completeSessionJob(uint256,string)");
    }
    if missing.is_empty() {
        return Look::Marketplace(versions);
    }
    let proof_system = has(proof_system::verifyAndMarkCompleteCall::SELECTOR)
        || has(proof_system::verifyEKZLCall::SELECTOR);
    if versions.is_empty() && proof_system { Look::ProofSystem } else { Look::Other(missing) }
}

/// The four-byte constants that the code pushes: every function's selector is among them.
pub(super) fn selectors(code: &[u8]) -> BTreeSet<Selector> {
    const PUSH1: u8 = 0x60;
    const PUSH4: u8 = 0x63;
    const PUSH32: u8 = 0x7f;
    let mut found = BTreeSet::new();
    let mut rest = code;
    while let Some((op, tail)) = rest.split_first() {
        let width = match *op {
            op @ PUSH1..=PUSH32 => usize::from(op.saturating_sub(PUSH1)).saturating_add(1),
            _ => 0,
        };
        if *op == PUSH4
            && let Some(selector) = tail.first_chunk::<4>()
        {
            found.insert(*selector);
        }
        rest = tail.get(width..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Code that pushes these selectors and nothing else.
    fn code(selectors: &[Selector]) -> Vec<u8> {
        selectors.iter().flat_map(|selector| [&[0x63][..], &selector[..]].concat()).collect()
    }

    #[test]
    fn a_selector_inside_another_constant_does_not_count() {
        let mut hidden = vec![0x7f]; // PUSH32 holds what looks like PUSH4 c8c664ee.
        hidden.extend([0x63, 0xc8, 0xc6, 0x64, 0xee]);
        hidden.extend([0; 27]);
        assert!(selectors(&hidden).is_empty());
        assert_eq!(selectors(&code(&[[1, 2, 3, 4]])).len(), 1);
        assert!(selectors(&[0x63, 1, 2]).is_empty(), "cut short");
    }

    #[test]
    fn code_is_told_by_its_selectors() {
        let rest = [sessionJobsCall::SELECTOR, completeSessionJobCall::SELECTOR];
        let with = |claim: Selector| code(&[rest[0], rest[1], claim]);
        use ContractVersion as V;
        assert_eq!(look(&with(V::V3.claim_selector())), Look::Marketplace(vec![V::V3a, V::V3]));
        assert_eq!(look(&with(V::V7.claim_selector())), Look::Marketplace(vec![V::V7]));
        assert_eq!(look(&code(&rest)), Look::Other(vec!["submitProofOfWork (of any version)"]));
        let verify = proof_system::verifyAndMarkCompleteCall::SELECTOR;
        assert_eq!(look(&code(&[verify])), Look::ProofSystem);
        assert!(matches!(look(&[]), Look::Other(missing) if missing.len() == 3));
    }
}
