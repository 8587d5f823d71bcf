//! Transcripts and proof bytes.
