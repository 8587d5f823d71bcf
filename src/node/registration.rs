//! `tally register`, `update` and `unregister`: which writes make the registry say what the
//! settings say.
//!
//! Never sends anything: a plan is a function of what is wanted and what was found, and holds only
//! what differs, so that carrying it out again does nothing. Relies on the port [`Registrar`].

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::settings::RegistrationSettings;
use crate::chain::registry::{
    Listing, ModelId, Registrar, RegistryError, RegistryShape, RegistryWrite, Stake,
};
use crate::units::{Address, Amount};

/// What the registry shall say in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// The host is entered, as the settings say.
    Registered,
    /// The same, for a host that is entered already.
    Updated,
    /// The host is not entered.
    Unregistered,
}

/// What the settings want clients to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The entry.
    pub listing: Listing,
    /// Lowest price of each of its models, by payment token; zero is native.
    pub model_prices: BTreeMap<Address, u128>,
}

/// What the registry says now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it can do.
    pub shape: RegistryShape,
    /// The host's entry.
    pub listing: Option<Listing>,
    /// What registering costs; `None` for a host that is entered already.
    pub stake: Option<Stake>,
    /// Prices of the wanted models.
    pub model_prices: BTreeMap<(ModelId, Address), u128>,
}

/// Writes, and what an operator must know besides.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// In order.
    pub writes: Vec<RegistryWrite>,
    /// What differs and cannot be written.
    pub notes: Vec<String>,
}

/// There is no way to the goal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Settings are missing.
    #[error("to register, set {0}")]
    NotSet(String),
    /// `update` of a host that is not entered.
    #[error("this host is not registered; `tally register` enters it")]
    NotRegistered,
    /// The wallet holds less than the stake.
    #[error("the stake is {needed} of {token}; {host} holds {held}")]
    StakeMissing {
        /// The ERC-20.
        token: Address,
        /// The stake.
        needed: Amount,
        /// What is there.
        held: Amount,
        /// The wallet.
        host: Address,
    },
}

/// What the settings want, with the host's public key (SEC1 compressed).
///
/// # Errors
/// [`PlanError::NotSet`] with everything that is missing.
pub fn wanted(settings: &RegistrationSettings, public_key: [u8; 33]) -> Result<Wanted, PlanError> {
    let mut missing = Vec::new();
    if settings.public_url.is_none() {
        missing.push("public_url");
    }
    if settings.model.is_none() {
        missing.push("model.repo and model.path or model.file");
    }
    let (Some(api_url), Some((repo, file))) = (&settings.public_url, &settings.model) else {
        return Err(PlanError::NotSet(missing.join(", ")));
    };
    let mut model_prices = settings.model_prices.clone();
    if let Some(price) = settings.price_native {
        model_prices.entry(Address::ZERO).or_insert(price);
    }
    let models = std::iter::once((repo, file));
    let models = models.chain(settings.models_more.iter().map(|(repo, file)| (repo, file)));
    let listing = Listing {
        metadata: metadata(settings, public_key).to_string(),
        api_url: api_url.clone(),
        models: models.map(|(repo, file)| ModelId::of(repo, file)).collect(),
        prices: settings.price_native.zip(settings.price_stable),
    };
    Ok(Wanted { listing, model_prices })
}

/// What clients read of a host (docs/spec/contract.md section 4).
fn metadata(settings: &RegistrationSettings, public_key: [u8; 33]) -> Value {
    json!({
        "hardware": {
            "gpu": settings.gpu,
            "vram": settings.vram_gigabytes,
            "ram": settings.ram_gigabytes,
        },
        "capabilities": settings.capabilities,
        "location": settings.location,
        "maxConcurrent": settings.concurrent_max,
        "publicKey": hex::encode(public_key),
    })
}

/// Reads what the plan needs to know.
///
/// # Errors
/// [`RegistryError`].
pub async fn find(registry: &dyn Registrar, wanted: &Wanted) -> Result<Found, RegistryError> {
    let shape = registry.registry_shape().await?;
    let listing = registry.listing().await?;
    let stake = match listing {
        Some(_) => None,
        None => Some(registry.stake().await?),
    };
    let mut model_prices = BTreeMap::new();
    if shape.has_model_prices {
        for model in &wanted.listing.models {
            for token in wanted.model_prices.keys() {
                let price = registry.model_price(*model, *token).await?;
                model_prices.insert((*model, *token), price);
            }
        }
    }
    Ok(Found { shape, listing, stake, model_prices })
}

/// The writes that lead from what was found to the goal; none where it is reached.
///
/// # Errors
/// [`PlanError`].
pub fn plan(goal: Goal, wanted: &Wanted, found: &Found, host: Address) -> Result<Plan, PlanError> {
    let mut plan = Plan::default();
    match (goal, &found.listing) {
        (Goal::Unregistered, None) => return Ok(plan),
        (Goal::Unregistered, Some(_)) => {
            plan.writes.push(RegistryWrite::Unregister);
            return Ok(plan);
        }
        (Goal::Updated, None) => return Err(PlanError::NotRegistered),
        (Goal::Registered, None) => enter(&mut plan, wanted, found, host)?,
        (Goal::Registered | Goal::Updated, Some(listing)) => {
            change(&mut plan, wanted, found.shape, listing);
        }
    }
    price_models(&mut plan, wanted, found);
    Ok(plan)
}

fn enter(plan: &mut Plan, wanted: &Wanted, found: &Found, host: Address) -> Result<(), PlanError> {
    let prices = wanted.listing.prices.filter(|_| found.shape.has_prices);
    if found.shape.has_prices && prices.is_none() {
        let keys = "registration.price_native and registration.price_stable";
        return Err(PlanError::NotSet(keys.to_owned()));
    }
    if let Some(Stake { token, needed, allowed, held }) = found.stake {
        if held < needed {
            return Err(PlanError::StakeMissing { token, needed, held, host });
        }
        if allowed < needed {
            // The stake and no more: whatever the registry becomes, it can take nothing else.
            plan.writes.push(RegistryWrite::ApproveStake { token, amount: needed });
        }
    }
    let listing = Listing { prices, ..wanted.listing.clone() };
    plan.writes.push(RegistryWrite::Register(listing));
    Ok(())
}

fn change(plan: &mut Plan, wanted: &Wanted, shape: RegistryShape, found: &Listing) {
    let wanted = &wanted.listing;
    if !is_same_json(&wanted.metadata, &found.metadata) {
        plan.writes.push(RegistryWrite::SetMetadata(wanted.metadata.clone()));
    }
    if wanted.api_url != found.api_url {
        plan.writes.push(RegistryWrite::SetApiUrl(wanted.api_url.clone()));
    }
    let set = |models: &[ModelId]| models.iter().copied().collect::<BTreeSet<_>>();
    if set(&wanted.models) != set(&found.models) {
        plan.writes.push(RegistryWrite::SetModels(wanted.models.clone()));
    }
    let (Some(prices), Some(shown)) = (wanted.prices, found.prices) else { return };
    if prices == shown {
        return;
    }
    if !shape.can_change_prices {
        let (native, stable) = shown;
        let why = "this registry changes them only by unregistering and registering anew";
        plan.notes.push(format!("the registered prices stay {native} and {stable}: {why}"));
        return;
    }
    if prices.0 != shown.0 {
        plan.writes.push(RegistryWrite::SetPriceNative(prices.0));
    }
    if prices.1 != shown.1 {
        plan.writes.push(RegistryWrite::SetPriceStable(prices.1));
    }
}

fn price_models(plan: &mut Plan, wanted: &Wanted, found: &Found) {
    if !found.shape.has_model_prices {
        return;
    }
    if wanted.model_prices.is_empty() {
        let why = "set registration.price_native or registration.model_prices";
        plan.notes.push(format!("no session can be opened for a model without a price: {why}"));
    }
    for model in &wanted.listing.models {
        for (token, price) in &wanted.model_prices {
            if found.model_prices.get(&(*model, *token)) != Some(price) {
                let (model, token, price) = (*model, *token, *price);
                plan.writes.push(RegistryWrite::SetModelPrice { model, token, price });
            }
        }
    }
}

/// Whether two texts are the same JSON, however it is written.
fn is_same_json(one: &str, other: &str) -> bool {
    let read = |text| serde_json::from_str::<Value>(text).ok();
    one == other || matches!((read(one), read(other)), (Some(one), Some(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Address = Address::new([5; 20]);
    const TOKEN: Address = Address::new([6; 20]);
    const USD: Address = Address::new([7; 20]);

    fn settings() -> RegistrationSettings {
        RegistrationSettings {
            public_url: Some("https://host.example".into()),
            model: Some(("owner/repo".into(), "m.gguf".into())),
            models_more: Vec::new(),
            price_native: Some(3000),
            price_stable: Some(40),
            model_prices: BTreeMap::from([(USD, 41)]),
            gpu: "none".into(),
            vram_gigabytes: 0,
            ram_gigabytes: 64,
            capabilities: vec!["streaming".into()],
            location: "earth".into(),
            concurrent_max: 16,
        }
    }

    fn want() -> Wanted {
        wanted(&settings(), [2; 33]).unwrap()
    }

    const PLAIN: RegistryShape =
        RegistryShape { has_prices: false, can_change_prices: false, has_model_prices: false };
    const PRICED: RegistryShape = RegistryShape { has_prices: true, ..PLAIN };
    const BY_MODEL: RegistryShape = RegistryShape { has_model_prices: true, ..PRICED };

    fn stake(allowed: u128, held: u128) -> Option<Stake> {
        let [needed, allowed, held] = [1000, allowed, held].map(Amount::new);
        Some(Stake { token: TOKEN, needed, allowed, held })
    }

    fn nothing(shape: RegistryShape) -> Found {
        let stake = stake(0, 5000);
        Found { shape, listing: None, stake, model_prices: BTreeMap::new() }
    }

    fn names(found: &Found, goal: Goal) -> Vec<&'static str> {
        let plan = plan(goal, &want(), found, HOST).unwrap();
        plan.writes.iter().map(RegistryWrite::name).collect()
    }

    #[test]
    fn the_metadata_has_what_clients_read() {
        let metadata: Value = serde_json::from_str(&want().listing.metadata).unwrap();
        let key = metadata["publicKey"].as_str().unwrap();
        assert_eq!((key.len(), &key[..4]), (66, "0202"));
        assert_eq!(metadata["hardware"]["ram"], 64);
        assert_eq!(metadata["maxConcurrent"], 16);
        assert_eq!(metadata["capabilities"][0], "streaming");
        assert_eq!(metadata["location"], "earth");
    }

    #[test]
    fn a_new_host_approves_exactly_the_stake_and_enters() {
        let found = nothing(PLAIN);
        assert_eq!(names(&found, Goal::Registered), ["approve", "registerNode"]);
        let plan = plan(Goal::Registered, &want(), &found, HOST).unwrap();
        let approved = RegistryWrite::ApproveStake { token: TOKEN, amount: Amount::new(1000) };
        assert_eq!(plan.writes[0], approved);
        for allowed in [1000, 1001] {
            let found = Found { stake: stake(allowed, 1000), ..nothing(PLAIN) };
            assert_eq!(names(&found, Goal::Registered), ["registerNode"], "{allowed}");
        }
        let RegistryWrite::Register(listing) = &plan.writes[1] else { panic!("{plan:?}") };
        assert_eq!(listing.prices, None, "this registry takes none");
    }

    #[test]
    fn later_registries_get_prices_too() {
        let plan = plan(Goal::Registered, &want(), &nothing(BY_MODEL), HOST).unwrap();
        let names: Vec<_> = plan.writes.iter().map(RegistryWrite::name).collect();
        let twice = "setModelTokenPricing";
        assert_eq!(names, ["approve", "registerNode", twice, twice]);
        let RegistryWrite::Register(listing) = &plan.writes[1] else { panic!("{plan:?}") };
        assert_eq!(listing.prices, Some((3000, 40)));
    }

    #[test]
    fn what_cannot_be_reached_is_told_and_nothing_is_written() {
        let poor = Found { stake: stake(0, 999), ..nothing(PLAIN) };
        let refused = |goal, found: &Found| plan(goal, &want(), found, HOST).unwrap_err();
        assert!(matches!(
            refused(Goal::Registered, &poor),
            PlanError::StakeMissing { held, .. } if held == Amount::new(999)
        ));
        assert_eq!(refused(Goal::Updated, &nothing(PLAIN)), PlanError::NotRegistered);
        let free = RegistrationSettings { price_stable: None, ..settings() };
        let free = wanted(&free, [2; 33]).unwrap();
        let refused = plan(Goal::Registered, &free, &nothing(PRICED), HOST);
        assert!(matches!(refused, Err(PlanError::NotSet(_))));
        assert!(plan(Goal::Registered, &free, &nothing(PLAIN), HOST).is_ok());
        let bare = RegistrationSettings { public_url: None, model: None, ..settings() };
        let missing = wanted(&bare, [2; 33]).unwrap_err().to_string();
        assert!(missing.contains("public_url") && missing.contains("model.repo"), "{missing}");
    }

    #[test]
    fn only_what_differs_is_written_and_nothing_where_all_is_said() {
        let said = Found {
            listing: Some(want().listing),
            stake: None,
            model_prices: BTreeMap::from([
                ((want().listing.models[0], Address::ZERO), 3000),
                ((want().listing.models[0], USD), 41),
            ]),
            shape: BY_MODEL,
        };
        for goal in [Goal::Registered, Goal::Updated] {
            assert_eq!(names(&said, goal), Vec::<&str>::new());
        }
        let with = |change: fn(&mut Listing)| {
            let mut listing = want().listing;
            change(&mut listing);
            names(&Found { listing: Some(listing), ..said.clone() }, Goal::Updated)
        };
        assert_eq!(with(|of| of.api_url = "http://old".into()), ["updateApiUrl"]);
        assert_eq!(with(|of| of.metadata = "{}".into()), ["updateMetadata"]);
        assert_eq!(with(|of| of.models.clear()), ["updateSupportedModels"]);
        assert_eq!(with(|of| of.metadata = format!(" {} ", of.metadata)), Vec::<&str>::new());
        assert_eq!(with(|of| of.prices = Some((1, 40))), Vec::<&str>::new(), "cannot be changed");
        let other = Found { model_prices: BTreeMap::new(), ..said.clone() };
        assert_eq!(names(&other, Goal::Updated).len(), 2);
        let listing = Some(Listing { prices: Some((1, 2)), ..want().listing });
        let shape = RegistryShape { can_change_prices: true, ..BY_MODEL };
        let changeable = Found { listing, shape, ..said.clone() };
        let both = ["updatePricingNative", "updatePricingStable"];
        assert_eq!(names(&changeable, Goal::Updated), both);
        assert_eq!(names(&said, Goal::Unregistered), ["unregisterNode"]);
        assert_eq!(names(&nothing(PLAIN), Goal::Unregistered), Vec::<&str>::new());
    }
}
