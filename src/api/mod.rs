//! Front-ends: bytes to domain and back.
