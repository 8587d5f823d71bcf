//! Claims: what may be claimed, and when.
