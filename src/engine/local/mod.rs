//! The engine crate behind the port.
