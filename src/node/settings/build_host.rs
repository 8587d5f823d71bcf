//! Puts together the settings of the wallet's duties and of the host's registration.
//!
//! Never opens the key: whether the cold address is our own is asked where the key is open. Reads
//! through [`Reader`], which collects problems.

use std::collections::BTreeMap;

use super::read::Reader;
use super::{Duties, ModelFile, RegistrationSettings, WalletSettings};
use crate::units::{Address, Amount};

/// Contracts of ours: money sent there is lost.
const CONTRACTS: [&str; 5] = [
    "chain.marketplace",
    "chain.node_registry",
    "chain.model_registry",
    "chain.proof_system",
    "chain.host_earnings",
];

pub(super) fn wallet(reader: &mut Reader) -> WalletSettings {
    const COLD: &str = "wallet.cold_address";
    let cold_address = reader.address(COLD);
    for key in CONTRACTS {
        if cold_address.is_some() && reader.address(key) == cold_address {
            reader.clash(COLD, format!("this is {key}: money sent to a contract is lost"));
        }
    }
    let amounts = by_currency(reader, "wallet.withdraw_above");
    let withdraw_above: BTreeMap<_, _> =
        amounts.into_iter().map(|(token, amount)| (token, Amount::new(amount))).collect();
    if withdraw_above.contains_key(&cold_address.unwrap_or(Address::ZERO)) && cold_address.is_some()
    {
        reader.clash(COLD, "this is a currency's contract: money sent there is lost");
    }
    let duties = match reader.choice("wallet.duties") {
        Some("claims") => Duties::Claims,
        _ => Duties::All,
    };
    if duties == Duties::Claims && cold_address.is_none() && !withdraw_above.is_empty() {
        let why = "wallet.duties allows withdrawals to a cold address only; set it";
        reader.clash("wallet.withdraw_above", why);
    }
    WalletSettings { cold_address, withdraw_above, duties }
}

pub(super) fn registration(reader: &mut Reader) -> RegistrationSettings {
    let repo = reader.text("model.repo");
    let path = reader.path("model.path");
    let of_path = path.and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
    let file = reader.text("model.file").or(of_path);
    let price_min = reader.integer("session.price_min").filter(|price: &u128| *price > 0);
    let concurrent_max = reader.integer("registration.max_concurrent");
    let running_max = reader.integer("engine.running_max").unwrap_or_default();
    RegistrationSettings {
        public_url: reader.url("public_url"),
        model: repo.zip(file),
        models_more: models_more(reader).into_iter().filter_map(|more| more.registered).collect(),
        price_native: reader.integer("registration.price_native").or(price_min),
        price_stable: reader.integer("registration.price_stable"),
        model_prices: by_currency(reader, "registration.model_prices"),
        gpu: reader.text("registration.gpu").unwrap_or_default(),
        vram_gigabytes: reader.integer("registration.vram_gigabytes").unwrap_or_default(),
        ram_gigabytes: reader.integer("registration.ram_gigabytes").unwrap_or_default(),
        capabilities: reader.words("registration.capabilities"),
        location: reader.text("registration.location").unwrap_or_default(),
        concurrent_max: concurrent_max.unwrap_or(running_max),
    }
}

/// Models besides the first one, in the order of their names.
pub(super) fn models_more(reader: &mut Reader) -> Vec<ModelFile> {
    const REGISTERED: &str = "model.more_registered";
    let paths = reader.map("model.more");
    let mut registered = BTreeMap::new();
    for (name, model) in reader.map(REGISTERED) {
        // A repository is OWNER/NAME; the file's name may have further parts.
        let parts = model.match_indices('/').nth(1).map(|(at, _)| model.split_at(at));
        match parts.map(|(repo, file)| (repo.to_owned(), file[1..].to_owned())) {
            _ if !paths.contains_key(&name) => {
                reader.clash(REGISTERED, format!("\"{name}\" is not one of model.more"));
            }
            Some((repo, file)) if !file.is_empty() => {
                registered.insert(name, (repo, file));
            }
            _ => reader.clash(REGISTERED, format!("\"{model}\": wanted OWNER/NAME/FILE")),
        }
    }
    let model = |(name, path): (String, String)| ModelFile {
        path: reader.expand(&path),
        registered: registered.remove(&name),
        name: Some(name),
    };
    paths.into_iter().map(model).collect()
}

/// Pairs `native=NUMBER` or `ADDRESS=NUMBER`, each number above 0.
fn by_currency(reader: &mut Reader, key: &'static str) -> BTreeMap<Address, u128> {
    let mut read = BTreeMap::new();
    for (name, number) in reader.map(key) {
        let token = match name.as_str() {
            "native" => Some(Address::ZERO),
            other => Address::parse(other),
        };
        let amount = super::kind::integer(&number).filter(|amount| *amount > 0);
        match (token, amount) {
            (Some(token), Some(amount)) if read.insert(token, amount).is_none() => {}
            _ => {
                let wanted = "wanted native=NUMBER or ADDRESS=NUMBER, each once, above 0";
                reader.clash(key, format!("\"{name}={number}\": {wanted}"));
            }
        }
    }
    read
}
