//! From settings to the host's key and its chain.
//!
//! Never keeps a password longer than opening takes. Relies on complete settings.

use std::sync::Arc;
use std::time::Duration;

use super::settings::{ChainSettings, KeyError, KeySource};
use crate::chain::evm::{self, ConnectError, EvmChain, EvmSettings, EvmWallet};
use crate::clock::SystemClock;

/// Longest wait for one answer of an endpoint: past it the outcome counts as unknown.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The key could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum WalletError {
    /// The password could not be read.
    #[error(transparent)]
    Password(#[from] KeyError),
    /// The adapter refused.
    #[error(transparent)]
    Key(#[from] evm::KeyError),
}

/// Opens the host's key. Blocks: a keystore's derivation takes about a second.
///
/// # Errors
/// [`WalletError`], which never holds the key or the password.
pub fn open_wallet(source: &KeySource) -> Result<Arc<EvmWallet>, WalletError> {
    let wallet = match source {
        KeySource::Keystore { path, password } => {
            EvmWallet::from_keystore(path, &password.read()?)?
        }
        KeySource::Env(key) => EvmWallet::from_key(key)?,
    };
    Ok(Arc::new(wallet))
}

/// Connects to the marketplace and checks that it is one.
///
/// # Errors
/// [`ConnectError`], naming what was wanted and what was found.
pub async fn connect(
    settings: &ChainSettings,
    wallet: Arc<EvmWallet>,
) -> Result<EvmChain, ConnectError> {
    evm::connect(EvmSettings {
        rpc_urls: settings.rpc_urls.iter().map(|url| url.expose().to_owned()).collect(),
        quorum: settings.quorum,
        chain_id: settings.chain_id,
        marketplace: settings.marketplace,
        contract_version: settings.contract_version,
        node_registry: settings.node_registry,
        model_registry: settings.model_registry,
        host_earnings: settings.host_earnings,
        proof_system: settings.proof_system,
        request_timeout: REQUEST_TIMEOUT,
        clock: SystemClock::shared(),
        wallet,
    })
    .await
}
