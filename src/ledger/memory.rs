//! The ledger in memory, for tests only.
