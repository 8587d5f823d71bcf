// JSON-RPC, signing and the deployment order, shared by deploy.js and the tests. It must never
// hold a key that is worth something: the only keys it knows are the public ones of anvil's
// development mnemonic. Relies on ethers in tools/node_modules and on contracts/bytecode.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const { createRequire } = require("node:module");
const { DEFAULT_VERSION, version } = require("./versions.js");

const ROOT = path.resolve(__dirname, "..");
const { ethers } = createRequire(path.join(ROOT, "tools/package.json"))("ethers");

/** anvil's well-known mnemonic: everybody has these keys, so nothing of value may be sent there. */
const DEV_MNEMONIC = "test test test test test test test test test test test junk";
const DEV_ROLES = ["deployer", "host", "depositor", "host2", "depositor2", "stranger", "treasury"];

/** A JSON-RPC answer that is an error; `data` is the revert data, where there is any. */
class RpcError extends Error {
  constructor(method, error) {
    super(`${method}: ${error.message} (code ${error.code})`);
    this.code = error.code;
    this.data = typeof error.data === "string" ? error.data : undefined;
  }
}

/** Returns `rpc(method, ...params)`; one attempt, an error answer throws RpcError. */
function connect(url) {
  let id = 0;
  return async function rpc(method, ...params) {
    id += 1;
    const response = await fetch(url, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ jsonrpc: "2.0", id, method, params }),
    });
    const answer = await response.json();
    if (answer.error) throw new RpcError(method, answer.error);
    return answer.result;
  };
}

/** Development accounts by role: { role: { address, private_key } }. */
function devAccounts() {
  const accounts = {};
  DEV_ROLES.forEach((role, index) => {
    const at = `m/44'/60'/0'/0/${index}`;
    const wallet = ethers.HDNodeWallet.fromPhrase(DEV_MNEMONIC, "", at);
    accounts[role] = { address: wallet.address, private_key: wallet.privateKey };
  });
  return accounts;
}

const artifacts = new Map();

/** ABI and creation code of a committed contract, read once. */
function artifact(name) {
  if (!artifacts.has(name)) {
    const read = (folder) =>
      JSON.parse(fs.readFileSync(path.join(__dirname, folder, `${name}.json`), "utf8"));
    const { abi } = read("abi");
    artifacts.set(name, { abi: new ethers.Interface(abi), bytecode: read("bytecode").bytecode });
  }
  return artifacts.get(name);
}

/**
 * Signs transactions of one key with nonces of its own counting, so that a whole deployment goes
 * into one block without a wait between its parts.
 */
class Signer {
  constructor(rpc, privateKey) {
    this.rpc = rpc;
    this.wallet = new ethers.Wallet(privateKey);
    this.address = this.wallet.address;
    this.nonce = undefined;
  }

  /** Sends and returns the hash at once. `gas` is a limit; the caller checks the receipt. */
  async send({ to, data, value = 0n, gas }) {
    this.nonce ??= Number(await this.rpc("eth_getTransactionCount", this.address, "pending"));
    const [chainId, head] = await Promise.all([
      this.rpc("eth_chainId"),
      this.rpc("eth_getBlockByNumber", "latest", false),
    ]);
    const tip = 1_000_000_000n;
    const signed = await this.wallet.signTransaction({
      type: 2,
      chainId: BigInt(chainId),
      nonce: this.nonce,
      to,
      data,
      value,
      gasLimit: gas,
      maxPriorityFeePerGas: tip,
      // Doubled, so that the fee holds while a few full blocks raise the base fee.
      maxFeePerGas: BigInt(head.baseFeePerGas) * 2n + tip,
    });
    const hash = await this.rpc("eth_sendRawTransaction", signed);
    this.nonce += 1;
    return hash;
  }
}

/** Receipt of a transaction, polled until `deadlineMs` passed; throws where it failed. */
async function mined(rpc, hash, deadlineMs = 60_000) {
  for (let waited = 0; waited < deadlineMs; waited += 50) {
    const receipt = await rpc("eth_getTransactionReceipt", hash);
    if (receipt !== null) {
      if (receipt.status !== "0x1") throw new Error(`transaction ${hash} failed on chain`);
      return receipt;
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`transaction ${hash} was not mined within ${deadlineMs} ms`);
}

/** Revert reason in words, from revert data; "" where there is none. */
function revertReason(data) {
  if (!data || data === "0x") return "";
  const words = new ethers.Interface(["error Error(string)", "error Panic(uint256)"]);
  // v7 has every custom error of the others but the vouchers'.
  const known = words.parseError(data) ?? artifact("JobMarketplaceV7").abi.parseError(data)
    ?? artifact("JobMarketplaceVouchers").abi.parseError(data);
  if (known === null) return data;
  return known.name === "Error" ? known.args[0] : `${known.name}(${known.args.join(", ")})`;
}

const DEFAULT_TERMS = {
  version: DEFAULT_VERSION,
  feeBasisPoints: 1000n,
  minDeposit: 200_000_000_000_000n, // 0.0002 of the native coin
  tokenMinDeposit: 800_000n,
};
/** v3 takes these one by one, the others as one struct: the words are the same. */
const MARKETPLACE_WORDS = [
  "address", "address", "address", "address", "uint256", "uint256", "uint256",
];
const DEPLOY_GAS = 8_000_000n;
const CALL_GAS = 1_500_000n;

/**
 * Deploys and wires all contracts of one version in the order that contracts/README.md names.
 * Returns their addresses, and the hashes to wait for: nothing is awaited here, so that the caller
 * may mine them into one block. The dispute window defaults to the version's.
 */
async function deployAll(rpc, signer, treasury, terms = {}) {
  const t = { ...DEFAULT_TERMS, ...terms };
  const names = version(t.version);
  const hashes = [];
  const deploy = async (name, types, ...args) => {
    const words = ethers.AbiCoder.defaultAbiCoder().encode(types, args);
    const data = ethers.concat([artifact(name).bytecode, words]);
    hashes.push(await signer.send({ to: null, data, gas: DEPLOY_GAS }));
    return ethers.getCreateAddress({ from: signer.address, nonce: signer.nonce - 1 });
  };
  const call = async (to, name, method, ...args) => {
    const data = artifact(name).abi.encodeFunctionData(method, args);
    hashes.push(await signer.send({ to, data, gas: CALL_GAS }));
  };
  const token = await deploy(
    "TestToken", ["string", "string"], "Tally Test Token", "TTT",
  );
  const models = await deploy(names.model_registry, []);
  const nodes = await deploy(names.node_registry, ["address", "address"], token, models);
  const earnings = await deploy("HostEarnings", []);
  const proofs = await deploy(names.proof_system, []);
  const marketplace = await deploy(
    names.job_marketplace, MARKETPLACE_WORDS, nodes, earnings, proofs, treasury,
    t.feeBasisPoints, t.disputeWindow ?? names.disputeWindow, t.minDeposit,
  );
  await call(earnings, "HostEarnings", "setAuthorizedCaller", marketplace, true);
  await call(marketplace, names.job_marketplace, "addAcceptedToken", token, t.tokenMinDeposit);
  const addresses = {
    job_marketplace: marketplace,
    node_registry: nodes,
    model_registry: models,
    proof_system: proofs,
    host_earnings: earnings,
    token,
  };
  return { addresses, hashes };
}

module.exports = {
  ethers,
  RpcError,
  Signer,
  CALL_GAS,
  DEFAULT_TERMS,
  DEPLOY_GAS,
  artifact,
  connect,
  deployAll,
  devAccounts,
  mined,
  revertReason,
};
