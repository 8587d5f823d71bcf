//! What is looked at before a node serves, and by `tally doctor`.
//!
//! Never changes anything, on chain or on disk. A finding that makes pay impossible is a failure
//! and stops the node; any other is a warning. Every finding that is not fine names its remedy.
//! Relies on docs/spec/contract.md sections 2 and 4.

use std::collections::BTreeMap;

use crate::chain::evm::EndpointReport;
use crate::chain::registry::{ModelId, Registry, RegistryError};
use crate::chain::{Chain, ChainError, Fees, Limits};
use crate::units::{Address, Amount, Gas, Hash32, TokenCount};

use super::orders;
use super::settings::{ModelFile, Settings};

/// Gas of a claim and a completion in the dearest version, rounded up: v3's 30th proof takes 219 k
/// (docs/spec/contract.md section 2), the first of v7, which stores its content id, 267 k, and the
/// completion of an ERC-20 session 251 k (measured on our stand-ins).
const CLAIM_GAS: Gas = Gas::new(280_000);
const COMPLETE_GAS: Gas = Gas::new(260_000);

/// Blocks that an endpoint may be behind the others when they are asked at one moment: some
/// seconds of a fast chain.
const ENDPOINT_LAG_MAX: u64 = 10;

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grade {
    /// Fine.
    Ok,
    /// It may cost clients or money; the node can work.
    Warning,
    /// The chain did not answer: it may the next time.
    Unanswered,
    /// The node cannot be paid like this.
    Failure,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it is to be taken.
    pub grade: Grade,
    /// What was found.
    pub found: String,
    /// What to do; empty where all is fine.
    pub remedy: String,
}

/// All findings, in the order of looking.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings(pub Vec<Finding>);

impl Findings {
    /// Whether any is a failure.
    #[must_use]
    pub fn has_failure(&self) -> bool {
        let fails = |grade| matches!(grade, Grade::Failure | Grade::Unanswered);
        self.0.iter().any(|finding| fails(finding.grade))
    }

    /// Adds a finding that is fine.
    pub fn ok(&mut self, check: &'static str, found: impl Into<String>) {
        self.add(check, Grade::Ok, found, "");
    }

    /// Adds a warning.
    pub fn warn(
        &mut self,
        check: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(check, Grade::Warning, found, remedy);
    }

    /// Adds a failure.
    pub fn fail(
        &mut self,
        check: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(check, Grade::Failure, found, remedy);
    }

    fn add(
        &mut self,
        check: &'static str,
        grade: Grade,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.0.push(Finding { check, grade, found: found.into(), remedy: remedy.into() });
    }
}

/// What is examined.
pub struct Subject<'a> {
    /// The chain, connected: chain id, code, version and selectors were checked by connecting.
    pub chain: &'a dyn Chain,
    /// The registries.
    pub registry: &'a dyn Registry,
    /// The settings.
    pub settings: &'a Settings,
    /// SHA-256 of each model's weights, in the order of the settings.
    pub weights_sha256: &'a [Hash32],
}

/// Looks at everything that needs the chain. Network reads only.
pub async fn examine(subject: &Subject<'_>) -> Findings {
    let mut findings = Findings::default();
    connection(subject, &mut findings);
    let limits = limits(subject, &mut findings).await;
    host(subject, &mut findings).await;
    for (file, sha256) in subject.settings.model.all().iter().zip(subject.weights_sha256) {
        model(subject, (file, *sha256), &mut findings).await;
        model_terms(subject, file, &mut findings).await;
    }
    cold_address(subject, &mut findings);
    let fees = gas(subject, &mut findings).await;
    price(subject, limits, fees, &mut findings);
    findings
}

/// A line for each RPC endpoint. A dead one is a warning as long as the others suffice: had they
/// not, connecting would have failed.
pub fn endpoints(reports: &[EndpointReport], findings: &mut Findings) {
    const CHECK: &str = "endpoint";
    for EndpointReport { host, answer, latency, lag, trouble } in reports {
        let (chain_id, head) = match answer {
            Ok(answer) => answer,
            Err(why) => {
                let remedy = "replace it in chain.rpc_urls, or wait; the others are used meanwhile";
                findings.warn(CHECK, format!("{host} does not answer: {why}"), remedy);
                continue;
            }
        };
        let millis = latency.map_or(0, |millis| millis.get());
        let found = format!("{host}: chain {chain_id}, head {head}, lag {lag}, {millis} ms");
        let remedy = "it is asked after the others; replace it where this stays";
        match trouble {
            Some(why) => findings.warn(CHECK, format!("{found}; {why}"), remedy),
            None if *lag > ENDPOINT_LAG_MAX => findings.warn(CHECK, found, remedy),
            None => findings.ok(CHECK, found),
        }
    }
}

fn connection(subject: &Subject<'_>, findings: &mut Findings) {
    findings.ok("chain", format!("id {}", subject.chain.chain_id()));
    let marketplace = subject.chain.marketplace();
    let version = subject.registry.contract_version();
    findings.ok("contract", format!("marketplace {version} at {marketplace}, all selectors there"));
}

async fn limits(subject: &Subject<'_>, findings: &mut Findings) -> Option<Limits> {
    const CHECK: &str = "limits";
    let limits = match subject.chain.limits().await {
        Ok(limits) => limits,
        Err(error) => {
            unanswered(CHECK, &error, findings);
            return None;
        }
    };
    let claim_at = subject.settings.settlement.claim_at;
    let least = limits.claim_min;
    if claim_at < least {
        let remedy = format!("set settlement.claim_at to {least} or more");
        findings.fail(CHECK, format!("claims of {claim_at} are under the least, {least}"), remedy);
    } else {
        findings.ok(CHECK, format!("least claim {least} tokens"));
    }
    Some(limits)
}

async fn host(subject: &Subject<'_>, findings: &mut Findings) {
    const CHECK: &str = "registration";
    let host = subject.registry.host();
    let standing = match subject.registry.host_standing().await {
        Ok(standing) => standing,
        Err(error) => return unread(CHECK, &error, findings),
    };
    if !standing.active {
        let remedy = "register the host in the node registry; until then clients do not find it, \
                      and from contract version v5 on cannot open sessions with it";
        return findings.warn(CHECK, format!("{host} is not an active host"), remedy);
    }
    match &subject.settings.public_url {
        Some(url) if !is_same_url(url, &standing.api_url) => {
            let found = format!("registered as {}, reached as {url}", standing.api_url);
            findings.warn(CHECK, found, "update the registered address, or public_url");
        }
        _ => findings.ok(CHECK, format!("{host} is active at {}", standing.api_url)),
    }
}

/// A trailing slash makes no other address.
fn is_same_url(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

async fn model(
    subject: &Subject<'_>,
    (served, sha256): (&ModelFile, Hash32),
    findings: &mut Findings,
) {
    const CHECK: &str = "model";
    let Some((repo, file)) = &served.registered else {
        let remedy = "set model.repo (and model.file), or its part of model.more_registered, to \
                      its name in the model registry";
        if subject.registry.binds_models() {
            // Each session names its model there, and a nameless one is never the right one.
            let found = "it has no name, so that every session of this contract is refused";
            return findings.fail(CHECK, found, remedy);
        }
        return findings.warn(CHECK, "it is not compared with the registry", remedy);
    };
    let id = ModelId::of(repo, file);
    let standing = match subject.registry.model_standing(id).await {
        Ok(standing) => standing,
        Err(error) => return unread(CHECK, &error, findings),
    };
    let name = format!("{repo}/{file}");
    if let Some(wanted) = standing.weights_sha256
        && wanted != sha256
    {
        let found = format!("{name}: file {sha256}, registry {wanted}");
        let remedy = "these are other weights than the registered: fetch the file again with \
                      `tally model pull --sha256`, or correct model.repo and model.file";
        return findings.fail(CHECK, found, remedy);
    }
    if !standing.approved {
        let remedy = "serve a model that the registry lists, or correct model.repo and model.file";
        return findings.warn(CHECK, format!("{name} is not approved"), remedy);
    }
    match subject.registry.host_supports(id).await {
        Ok(true) => findings.ok(CHECK, format!("{name} is approved, hash and host agree")),
        Ok(false) => {
            let remedy = "add the model to this host's registration";
            findings.warn(CHECK, format!("{name}: this host does not announce it"), remedy);
        }
        Err(error) => unread(CHECK, &error, findings),
    }
}

/// What sessions for the model come under, where they are bound to one. Nothing here stops the
/// node: sessions that are open already want their claims, and the owner may set a rate any time.
async fn model_terms(subject: &Subject<'_>, served: &ModelFile, findings: &mut Findings) {
    let Some((repo, file)) = &served.registered else { return };
    if !subject.registry.binds_models() {
        return;
    }
    let session = &subject.settings.session;
    let mut wanted = BTreeMap::from([(Address::ZERO, session.price_min.get())]);
    wanted.extend(session.payment_tokens.iter().map(|token| (token.address, token.price_min)));
    let tokens: Vec<_> = wanted.keys().copied().collect();
    let terms = match subject.registry.model_terms(ModelId::of(repo, file), &tokens).await {
        Ok(terms) => terms,
        Err(error) => return unread("model terms", &error, findings),
    };
    let name = format!("{repo}/{file}");
    rate(&name, terms.rate_per_second, findings);
    for (token, price_min) in wanted {
        let registered = terms.prices.get(&token).copied().unwrap_or_default();
        model_price(&name, token, (registered, price_min), findings);
    }
}

fn rate(name: &str, rate: u64, findings: &mut Findings) {
    const CHECK: &str = "model rate";
    if rate > 0 {
        return findings.ok(CHECK, format!("{rate} tokens a second may be claimed of {name}"));
    }
    let found = format!("the model registry sets no claim rate for {name}");
    let remedy = "its sessions are refused (rate_unset) until the registry's owner sets one";
    findings.warn(CHECK, found, remedy);
}

fn model_price(
    name: &str,
    token: Address,
    (registered, price_min): (u128, u128),
    findings: &mut Findings,
) {
    const CHECK: &str = "model price";
    let is_native = token == Address::ZERO;
    let coin = if is_native { "native coin".to_owned() } else { token.to_string() };
    if registered == 0 {
        let found = format!("this host registered no price of {name} in {coin}");
        let setting =
            if is_native { "registration.price_native" } else { "registration.model_prices" };
        let remedy = format!(
            "set {setting} and run `tally update`: until then no session can be opened in {coin}"
        );
        return findings.warn(CHECK, found, remedy);
    }
    let found = format!("{name}: {registered} registered in {coin}, {price_min} the least served");
    if registered < price_min {
        let remedy = "sessions at the registered price are refused: register a higher one with \
                      `tally update`, or accept a lower one";
        return findings.warn(CHECK, found, remedy);
    }
    findings.ok(CHECK, found);
}

fn cold_address(subject: &Subject<'_>, findings: &mut Findings) {
    const CHECK: &str = "withdrawals";
    let wallet = &subject.settings.wallet;
    let Some(cold) = wallet.cold_address else { return };
    match orders::check_cold_address(wallet, subject.registry.host()) {
        Ok(()) => findings.ok(CHECK, format!("earnings move on to {cold}")),
        Err(found) => {
            let remedy = "set wallet.cold_address to an account whose key is elsewhere";
            findings.fail(CHECK, found, remedy);
        }
    }
}

async fn gas(subject: &Subject<'_>, findings: &mut Findings) -> Option<Fees> {
    const CHECK: &str = "gas";
    let host = subject.registry.host();
    let answers = (subject.registry.gas_balance().await, subject.chain.fees().await);
    let (balance, fees) = match answers {
        (Ok(balance), Ok(fees)) => (balance, fees),
        (Err(error), _) | (_, Err(error)) => {
            unanswered(CHECK, &error, findings);
            return None;
        }
    };
    let gas = CLAIM_GAS.saturating_add(COMPLETE_GAS);
    let Some(needed) = fee(gas, fees) else {
        findings.fail(CHECK, "the fee is past every number", "check the endpoint");
        return None;
    };
    let found = format!("{balance} wei; a claim and a completion cost up to {needed}");
    if balance < needed {
        let missing = needed.saturating_sub(balance);
        // No reason not to start: claims that are out already may wait for this node.
        let remedy = format!("send {missing} wei or more to {host}: no new paid work until then");
        findings.warn(CHECK, found, remedy);
    } else {
        findings.ok(CHECK, found);
    }
    Some(fees)
}

fn fee(gas: Gas, fees: Fees) -> Option<Amount> {
    u128::from(gas.get()).checked_mul(fees.fee_max.get()).map(Amount::new)
}

fn price(
    subject: &Subject<'_>,
    limits: Option<Limits>,
    fees: Option<Fees>,
    findings: &mut Findings,
) {
    const CHECK: &str = "price";
    let least = subject.settings.session.price_min;
    if least.get() == 0 {
        let remedy = "set session.price_min, so that sessions that do not pay are refused";
        return findings.warn(CHECK, "sessions at any price are served", remedy);
    }
    let (Some(limits), Some(fees)) = (limits, fees) else { return };
    let tokens: TokenCount = subject.settings.settlement.claim_at;
    let (Some(value), Some(cost)) = (limits.price_unit.cost(tokens, least), fee(CLAIM_GAS, fees))
    else {
        return findings.fail(CHECK, "price_min is past every number", "lower session.price_min");
    };
    let found = format!("a claim of {tokens} tokens earns {value} or more and costs up to {cost}");
    if value <= cost {
        let remedy = "raise session.price_min or settlement.claim_at: small claims only cost";
        findings.warn(CHECK, found, remedy);
    } else {
        findings.ok(CHECK, found);
    }
}

fn unanswered(check: &'static str, error: &ChainError, findings: &mut Findings) {
    let remedy = "check chain.rpc_urls; the node starts when the endpoint answers";
    let grade = match error {
        ChainError::Unreachable(_) => Grade::Unanswered,
        ChainError::Unexpected(_) => Grade::Failure,
    };
    findings.add(check, grade, error.to_string(), remedy);
}

/// Registries tell clients where to go; the marketplace pays for sessions that were opened.
fn unread(check: &'static str, error: &RegistryError, findings: &mut Findings) {
    let remedy = match error {
        RegistryError::NotConfigured(_) => {
            "set its address (chain.node_registry, chain.model_registry)"
        }
        RegistryError::NoRegistry { .. } | RegistryError::Chain(_) => {
            "check the registry's address and chain.rpc_urls"
        }
    };
    findings.warn(check, error.to_string(), remedy);
}

#[cfg(test)]
#[cfg(feature = "test-support")]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::chain::fixed::{FixedChain, HOST};
    use crate::chain::registry::{HostStanding, ModelStanding, ModelTerms};
    use crate::node::settings::Inputs;

    const WEIGHTS: Hash32 = Hash32::new([7; 32]);

    /// A registry that holds what a test put there.
    struct Registered {
        active: bool,
        url: &'static str,
        approved: bool,
        weights: Option<Hash32>,
        supported: bool,
        balance: u128,
        /// Where sessions are bound to models.
        terms: Option<ModelTerms>,
    }

    impl Default for Registered {
        fn default() -> Self {
            Self {
                active: true,
                url: "http://host.example/",
                approved: true,
                weights: Some(WEIGHTS),
                supported: true,
                balance: 540_000,
                terms: None,
            }
        }
    }

    #[async_trait]
    impl Registry for Registered {
        fn contract_version(&self) -> &'static str {
            "v3"
        }

        fn host(&self) -> Address {
            HOST
        }

        async fn has_code(&self, _address: Address) -> Result<bool, ChainError> {
            Ok(true)
        }

        async fn host_standing(&self) -> Result<HostStanding, RegistryError> {
            Ok(HostStanding { active: self.active, api_url: self.url.to_owned() })
        }

        async fn host_supports(&self, _model: ModelId) -> Result<bool, RegistryError> {
            Ok(self.supported)
        }

        async fn model_standing(&self, _model: ModelId) -> Result<ModelStanding, RegistryError> {
            Ok(ModelStanding { approved: self.approved, weights_sha256: self.weights })
        }

        fn binds_models(&self) -> bool {
            self.terms.is_some()
        }

        async fn model_terms(
            &self,
            _model: ModelId,
            tokens: &[Address],
        ) -> Result<ModelTerms, RegistryError> {
            let mut terms = self.terms.clone().unwrap();
            terms.prices.retain(|token, _| tokens.contains(token));
            Ok(terms)
        }

        async fn gas_balance(&self) -> Result<Amount, ChainError> {
            Ok(Amount::new(self.balance))
        }
    }

    fn settings(more: &[(&str, &str)]) -> Settings {
        let base = [
            ("HOME", "/home/host"),
            ("TALLY_MODEL_PATH", "/m.gguf"),
            ("TALLY_MODEL_REPO", "owner/repo"),
            ("TALLY_PUBLIC_URL", "http://host.example"),
            ("TALLY_CHAIN_RPC_URLS", "http://rpc.example"),
            ("TALLY_CHAIN_ID", "1"),
            ("TALLY_CHAIN_MARKETPLACE", "0x0000000000000000000000000000000000000a01"),
            ("TALLY_HOST_PRIVATE_KEY", &"1".repeat(64)),
            ("TALLY_SESSION_PRICE_MIN", "3000"),
        ];
        let all = base.iter().chain(more);
        let env: BTreeMap<_, _> =
            all.map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        Settings::load(&Inputs { env, dir: "/nonexistent".into(), ..Inputs::default() }).unwrap()
    }

    async fn grades(registry: Registered, more: &[(&str, &str)]) -> BTreeMap<&'static str, Grade> {
        let findings = findings(registry, more).await;
        findings.0.iter().map(|finding| (finding.check, finding.grade)).collect()
    }

    async fn findings(registry: Registered, more: &[(&str, &str)]) -> Findings {
        let (chain, settings) = (FixedChain::new(1), settings(more));
        let (chain, settings) = (chain.as_ref(), &settings);
        let subject = Subject { chain, registry: &registry, settings, weights_sha256: &[WEIGHTS] };
        let findings = examine(&subject).await;
        let lacks_remedy =
            |finding: &&Finding| finding.grade != Grade::Ok && finding.remedy.is_empty();
        assert_eq!(findings.0.iter().find(lacks_remedy), None, "every finding has a remedy");
        findings
    }

    #[tokio::test]
    async fn a_node_in_order_has_nothing_to_remedy() {
        let grades = grades(Registered::default(), &[]).await;
        assert_eq!(grades.len(), 7, "{grades:?}");
        assert!(grades.values().all(|grade| *grade == Grade::Ok), "{grades:?}");
    }

    #[tokio::test]
    async fn what_makes_pay_impossible_fails_and_the_rest_warns() {
        let fine = Registered::default;
        let cases = [
            ("gas", Grade::Warning, Registered { balance: 539_999, ..fine() }),
            ("model", Grade::Failure, Registered { weights: Some(Hash32::ZERO), ..fine() }),
            ("model", Grade::Warning, Registered { approved: false, ..fine() }),
            ("model", Grade::Warning, Registered { supported: false, ..fine() }),
            ("registration", Grade::Warning, Registered { active: false, ..fine() }),
            ("registration", Grade::Warning, Registered { url: "http://old", ..fine() }),
        ];
        for (check, grade, registry) in cases {
            assert_eq!(grades(registry, &[]).await.get(check), Some(&grade), "{check}");
        }
    }

    const USD: Address = Address::new([6; 20]);

    /// A registry that binds sessions to models, and the grades of what was said of their terms.
    async fn of_terms(rate: u64, native: u128, usd: u128) -> (Grade, Vec<Grade>) {
        let prices = BTreeMap::from([(Address::ZERO, native), (USD, usd)]);
        let terms = Some(ModelTerms { rate_per_second: rate, prices });
        let accepted = format!("{USD}=40");
        let more = [("TALLY_SESSION_PAYMENT_TOKENS", accepted.as_str())];
        let found = findings(Registered { terms, ..Registered::default() }, &more).await;
        assert!(!found.has_failure(), "open sessions want their claims: {found:?}");
        let of = |check: &str| -> Vec<_> {
            let of_it = found.0.iter().filter(|finding| finding.check == check);
            of_it.map(|finding| finding.grade).collect()
        };
        (of("model rate")[0], of("model price"))
    }

    #[tokio::test]
    async fn each_currency_wants_a_price_of_the_model_that_is_not_under_the_least_served() {
        use Grade::{Ok, Warning};
        // The least served are 3000 in native coin and 40 in the token.
        let table = [
            ((3000, 40), [Ok, Ok]),
            ((3001, 41), [Ok, Ok]),
            ((0, 40), [Warning, Ok]),
            ((3000, 0), [Ok, Warning]),
            ((2999, 40), [Warning, Ok]),
            ((3000, 39), [Ok, Warning]),
        ];
        for ((native, usd), prices) in table {
            assert_eq!(of_terms(1, native, usd).await, (Ok, prices.to_vec()), "{native}, {usd}");
        }
    }

    #[tokio::test]
    async fn a_model_without_a_claim_rate_warns() {
        assert_eq!(of_terms(0, 3000, 40).await.0, Grade::Warning);
        assert_eq!(of_terms(1, 3000, 40).await.0, Grade::Ok);
    }

    #[tokio::test]
    async fn a_nameless_model_fails_where_every_session_names_one() {
        for (terms, grade) in
            [(None, Grade::Warning), (Some(ModelTerms::default()), Grade::Failure)]
        {
            let registry = Registered { terms, ..Registered::default() };
            let grades = grades(registry, &[("TALLY_MODEL_REPO", "")]).await;
            assert_eq!(grades.get("model"), Some(&grade));
        }
    }

    #[tokio::test]
    async fn a_price_that_does_not_cover_the_fee_warns() {
        // A claim of 100 tokens costs up to 280 000 wei at this chain's fee of 1 wei per gas.
        for (price, grade) in [("0", Grade::Warning), ("2800", Grade::Warning), ("2801", Grade::Ok)]
        {
            let grades = grades(Registered::default(), &[("TALLY_SESSION_PRICE_MIN", price)]).await;
            assert_eq!(grades.get("price"), Some(&grade), "{price}");
        }
    }

    #[tokio::test]
    async fn an_endpoint_that_does_not_answer_is_a_failure() {
        let (chain, settings) = (FixedChain::new(1), settings(&[]));
        chain.set_reachable(false);
        let registry = Registered::default();
        let (chain, settings) = (chain.as_ref(), &settings);
        let subject = Subject { chain, registry: &registry, settings, weights_sha256: &[WEIGHTS] };
        assert!(examine(&subject).await.has_failure());
    }
}
