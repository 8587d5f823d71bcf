//! Worker mode: its wire, its jobs, and the program as a pool manager spawns it.

mod callback;
mod ends;
mod families;
mod fuzz;
mod golden;
mod jobs;
mod leaks;
mod process;
mod refusals;
