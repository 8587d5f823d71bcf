//! Settings, wiring, tasks and shutdown.
