//! Earnings that lie in the contract, put there without any session, and where they went.

use alloy::primitives::{Address as EvmAddress, Bytes, U256, keccak256};
use alloy::sol_types::SolCall;
use serde_json::json;
use tally::units::Address;

use crate::support::anvil::{DEPLOYER, Devnet, HOST};

alloy::sol! {
    function setAuthorizedCaller(address caller, bool authorized) external;
    function creditEarnings(address host, uint256 amount, address token) external;
    function getBalance(address host, address token) external view returns (uint256);
    function mint(address to, uint256 amount) external;
    function balanceOf(address owner) external view returns (uint256);
}

/// An account that belongs to nobody on this machine.
pub const COLD: Address = Address::new([0xc0; 20]);

fn evm(address: Address) -> EvmAddress {
    EvmAddress::new(*address.bytes())
}

/// The host has earned `amount` more in `token`.
pub async fn credit(devnet: &Devnet, token: Address, amount: u128) {
    let earnings = devnet.contracts.host_earnings;
    let caller = evm(DEPLOYER.address());
    let allow = setAuthorizedCallerCall { caller, authorized: true };
    devnet.send(DEPLOYER, earnings, allow.abi_encode(), 0).await;
    if token == Address::ZERO {
        devnet.send(DEPLOYER, earnings, Vec::new(), amount).await;
    } else {
        let mint = mintCall { to: evm(earnings), amount: U256::from(amount) };
        devnet.send(DEPLOYER, token, mint.abi_encode(), 0).await;
    }
    let (host, token) = (evm(HOST.address()), evm(token));
    let credit = creditEarningsCall { host, amount: U256::from(amount), token };
    devnet.send(DEPLOYER, earnings, credit.abi_encode(), 0).await;
}

/// What the host may still withdraw.
pub async fn left(devnet: &Devnet, token: Address) -> u128 {
    let call = getBalanceCall { host: evm(HOST.address()), token: evm(token) };
    read(devnet, devnet.contracts.host_earnings, call.abi_encode()).await
}

/// What an account holds.
pub async fn held(devnet: &Devnet, owner: Address, token: Address) -> u128 {
    if token != Address::ZERO {
        let call = balanceOfCall { owner: evm(owner) };
        return read(devnet, token, call.abi_encode()).await;
    }
    let balance = devnet.rpc("eth_getBalance", json!([owner.to_string(), "latest"])).await;
    let balance: U256 = balance.as_str().unwrap().parse().unwrap();
    u128::try_from(balance).unwrap()
}

/// How many withdrawals the contract made.
pub async fn withdrawals(devnet: &Devnet) -> usize {
    let topic = keccak256("EarningsWithdrawn(address,address,uint256,uint256)");
    let filter = json!([{
        "fromBlock": "0x0",
        "toBlock": "latest",
        "address": devnet.contracts.host_earnings.to_string(),
        "topics": [topic],
    }]);
    devnet.rpc("eth_getLogs", filter).await.as_array().unwrap().len()
}

pub async fn read(devnet: &Devnet, to: Address, input: Vec<u8>) -> u128 {
    let call = json!([{"to": to.to_string(), "data": Bytes::from(input)}, "latest"]);
    let word = devnet.rpc("eth_call", call).await;
    let word: U256 = word.as_str().unwrap().parse().unwrap();
    u128::try_from(word).unwrap()
}
