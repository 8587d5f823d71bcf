//! The program itself, with a real model and a real chain, as a process that can be killed.

mod crowd;
mod faults;
mod kill;
mod operator;
mod orders;
mod process;
mod stop;
