//! Folders of safetensors.
