//! Calls of clients and owners that only these tests make.

use alloy::primitives::{Address as EvmAddress, U256};
use alloy::sol_types::SolCall;
use serde_json::json;
use tally::units::{Address, JobId};

use crate::support::anvil::{CLIENT, DEPLOYER, Devnet, OpenSession};

alloy::sol! {
    function addAcceptedToken(address token, uint256 minDeposit) external;
    function mint(address to, uint256 amount) external;
    function approve(address spender, uint256 amount) external;
    function createSessionJobWithToken(
        address host, address token, uint256 deposit, uint256 pricePerToken,
        uint256 maxDuration, uint256 proofInterval
    ) external returns (uint256 jobId);
    function withdrawNative(uint256 amount) external;
    function depositNative() external payable;
    function nextJobId() external view returns (uint256);
}

fn evm(address: Address) -> EvmAddress {
    EvmAddress::new(*address.bytes())
}

/// The depositor takes native money back, as v3 lets it in mid-session.
pub async fn take_deposit_back(devnet: &Devnet, wei: u128) {
    let call = withdrawNativeCall { amount: U256::from(wei) };
    devnet.send(CLIENT, devnet.contracts.marketplace, call.abi_encode(), 0).await;
}

/// The depositor brings native money.
pub async fn bring_deposit(devnet: &Devnet, wei: u128) {
    let input = depositNativeCall {}.abi_encode();
    devnet.send(CLIENT, devnet.contracts.marketplace, input, wei).await;
}

/// Opens a session in the stake token, as [`CLIENT`].
pub async fn open_with_token(devnet: &Devnet, open: OpenSession) -> JobId {
    let contracts = devnet.contracts;
    let (token, market) = (contracts.token, contracts.marketplace);
    let amount = U256::from(open.deposit);
    let accept = addAcceptedTokenCall { token: evm(token), minDeposit: U256::from(1) };
    devnet.send(DEPLOYER, market, accept.abi_encode(), 0).await;
    let mint = mintCall { to: evm(CLIENT.address()), amount };
    devnet.send(CLIENT, token, mint.abi_encode(), 0).await;
    let approve = approveCall { spender: evm(market), amount };
    devnet.send(CLIENT, token, approve.abi_encode(), 0).await;
    let create = createSessionJobWithTokenCall {
        host: evm(open.host.address()),
        token: evm(token),
        deposit: amount,
        pricePerToken: U256::from(open.price),
        maxDuration: U256::from(open.duration_max),
        proofInterval: U256::from(open.proof_interval),
    };
    devnet.send(CLIENT, market, create.abi_encode(), 0).await;
    let data = alloy::primitives::Bytes::from(nextJobIdCall {}.abi_encode());
    let call = json!([{"to": market.to_string(), "data": data}, "latest"]);
    let next: U256 = devnet.rpc("eth_call", call).await.as_str().unwrap().parse().unwrap();
    JobId::new(u64::try_from(next).unwrap() - 1).unwrap()
}

/// Native money of an address, wei.
pub async fn balance(devnet: &Devnet, address: Address) -> u128 {
    let answer = devnet.rpc("eth_getBalance", json!([address.to_string(), "latest"])).await;
    u128::from_str_radix(&answer.as_str().unwrap()[2..], 16).unwrap()
}

/// From now on an address has this much native money.
pub async fn set_balance(devnet: &Devnet, address: Address, wei: u128) {
    devnet.rpc("anvil_setBalance", json!([address.to_string(), format!("{wei:#x}")])).await;
}
