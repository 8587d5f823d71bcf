//! The marketplace on an EVM chain, through alloy.
