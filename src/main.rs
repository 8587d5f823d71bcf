//! `tally`: the command line.
fn main() {}
