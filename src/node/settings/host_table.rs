//! The list of settings, continued: the wallet's duties and the host's entry in the registry.
//!
//! Never computes: rows only, as `table.rs`.

use super::catalog::{Fallback, Setting};
use super::kind::Kind;

/// The settings.
pub(super) const HOST: &[Setting] = &[
    Setting {
        key: "wallet.cold_address",
        flag: Some("wallet-cold-address"),
        env: "TALLY_WALLET_COLD_ADDRESS",
        alias: None,
        kind: Kind::Address,
        fallback: Fallback::None,
        about: "Where withdrawn earnings move on to; an account whose key is not on this machine",
    },
    Setting {
        key: "wallet.withdraw_above",
        flag: Some("wallet-withdraw-above"),
        env: "TALLY_WALLET_WITHDRAW_ABOVE",
        alias: None,
        kind: Kind::Map,
        fallback: Fallback::Text(""),
        about: "Earnings from which the node withdraws by itself, `native=WEI` or \
                `ADDRESS=UNITS` for each currency",
    },
    Setting {
        key: "wallet.duties",
        flag: Some("wallet-duties"),
        env: "TALLY_WALLET_DUTIES",
        alias: None,
        kind: Kind::Choice(&["all", "claims"]),
        fallback: Fallback::Text("all"),
        about: "What the host's key may sign: everything that is ordered, or nothing but claims, \
                completions and withdrawals to the cold address",
    },
    Setting {
        key: "registration.price_native",
        flag: Some("registration-price-native"),
        env: "TALLY_REGISTRATION_PRICE_NATIVE",
        alias: None,
        kind: Kind::Integer { min: 1, max: u128::MAX, unit: "price units per token" },
        fallback: Fallback::Computed("`session.price_min` where it is not 0"),
        about: "Lowest price in native coin that the registry shows, where it shows prices",
    },
    Setting {
        key: "registration.price_stable",
        flag: Some("registration-price-stable"),
        env: "TALLY_REGISTRATION_PRICE_STABLE",
        alias: None,
        kind: Kind::Integer { min: 1, max: u128::MAX, unit: "price units per token" },
        fallback: Fallback::None,
        about: "The same for payment tokens (ERC-20); registries that show prices need both",
    },
    Setting {
        key: "registration.model_prices",
        flag: Some("registration-model-prices"),
        env: "TALLY_REGISTRATION_MODEL_PRICES",
        alias: None,
        kind: Kind::Map,
        fallback: Fallback::Text(""),
        about: "Lowest price of the model for each payment token, `ADDRESS=PRICE`, where the \
                registry has one for each (v7); the native one is `registration.price_native`",
    },
    Setting {
        key: "registration.gpu",
        flag: Some("registration-gpu"),
        env: "TALLY_REGISTRATION_GPU",
        alias: None,
        kind: Kind::Text,
        fallback: Fallback::Text("none"),
        about: "Accelerator that the registered metadata names",
    },
    Setting {
        key: "registration.vram_gigabytes",
        flag: Some("registration-vram-gigabytes"),
        env: "TALLY_REGISTRATION_VRAM_GIGABYTES",
        alias: None,
        kind: Kind::Integer { min: 0, max: 1 << 20, unit: "GB" },
        fallback: Fallback::Text("0"),
        about: "Its memory, in the registered metadata",
    },
    Setting {
        key: "registration.ram_gigabytes",
        flag: Some("registration-ram-gigabytes"),
        env: "TALLY_REGISTRATION_RAM_GIGABYTES",
        alias: None,
        kind: Kind::Integer { min: 0, max: 1 << 20, unit: "GB" },
        fallback: Fallback::Text("0"),
        about: "The machine's memory, in the registered metadata",
    },
    Setting {
        key: "registration.capabilities",
        flag: Some("registration-capabilities"),
        env: "TALLY_REGISTRATION_CAPABILITIES",
        alias: None,
        kind: Kind::Words,
        fallback: Fallback::Text("streaming"),
        about: "What the registered metadata says the host can do",
    },
    Setting {
        key: "registration.location",
        flag: Some("registration-location"),
        env: "TALLY_REGISTRATION_LOCATION",
        alias: None,
        kind: Kind::Text,
        fallback: Fallback::Text("unknown"),
        about: "Where the host stands, in the registered metadata",
    },
    Setting {
        key: "registration.max_concurrent",
        flag: Some("registration-max-concurrent"),
        env: "TALLY_REGISTRATION_MAX_CONCURRENT",
        alias: None,
        kind: Kind::Integer { min: 1, max: 65_536, unit: "requests" },
        fallback: Fallback::Computed("`engine.running_max`"),
        about: "Requests served at once, in the registered metadata",
    },
];
