// A real anvil for a test file, with its clock in the test's hands. It must never leave an anvil
// running: the process is killed when the file ends, and again when node exits for any reason.
"use strict";

const assert = require("node:assert/strict");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");
const { spawn } = require("node:child_process");
const chain = require("../chain.js");
const { DEFAULT_VERSION, VERSIONS, version } = require("../versions.js");

const { ethers } = chain;
const TOOLS = path.resolve(__dirname, "../../tools/node_modules/@foundry-rs");
const NATIVE = ethers.ZeroAddress;

/** Path of anvil: TALLY_TEST_ANVIL, else the pinned one; throws where there is none. */
function anvilPath() {
  if (process.env.TALLY_TEST_ANVIL) return process.env.TALLY_TEST_ANVIL;
  const found = (fs.existsSync(TOOLS) ? fs.readdirSync(TOOLS) : [])
    .map((name) => path.join(TOOLS, name, "bin/anvil"))
    .find((file) => fs.existsSync(file));
  assert.ok(found, "anvil is missing: run scripts/test-contracts.sh, or set TALLY_TEST_ANVIL");
  return found;
}

const running = new Set();
process.on("exit", () => running.forEach((stop) => stop()));
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
  process.once(signal, () => process.exit(1));
}

/** Starts anvil on a port of the system's choice; resolves with { url, stop }. */
function startAnvil() {
  const states = fs.mkdtempSync(path.join(os.tmpdir(), "anvil-states-"));
  const options = ["--port", "0", "--slots-in-an-epoch", "1", "--cache-path", states];
  const child = spawn(anvilPath(), options, { stdio: ["ignore", "pipe", "inherit"] });
  const stop = () => {
    running.delete(stop);
    child.kill("SIGKILL");
    fs.rmSync(states, { recursive: true, force: true });
  };
  running.add(stop);
  return new Promise((resolve, reject) => {
    let text = "";
    child.on("error", reject);
    child.on("exit", (code) => reject(new Error(`anvil ended early, code ${code}: ${text}`)));
    child.stdout.on("data", (part) => {
      text += part;
      const port = /^Listening on .*:(\d+)$/m.exec(text)?.[1];
      if (port) resolve({ url: `http://127.0.0.1:${port}`, stop });
    });
  });
}

/** A deployed set of contracts on a chain of its own; times and amounts are bigint. */
class World {
  /** Deploys a version. With `registered`, both hosts offer MODEL and v7 knows its rate. */
  static async start({ name = DEFAULT_VERSION, registered = true } = {}) {
    const world = new World();
    world.version = name;
    world.v = { ...version(name), ...TRAITS[name] };
    world.price = WEI_PER_TOKEN * world.v.pricePrecision;
    world.anvil = await startAnvil();
    world.rpc = chain.connect(world.anvil.url);
    await world.rpc("anvil_setLoggingEnabled", false);
    // Blocks are made by evm_mine alone, which returns when the block is there.
    await world.rpc("evm_setAutomine", false);
    world.accounts = chain.devAccounts();
    for (const [role, account] of Object.entries(world.accounts)) world[role] = account.address;
    const signer = new chain.Signer(world.rpc, world.accounts.deployer.private_key);
    const terms = { version: name, disputeWindow: WINDOW };
    const { addresses, hashes } = await chain.deployAll(world.rpc, signer, world.treasury, terms);
    await world.rpc("evm_mine");
    for (const hash of hashes) await chain.mined(world.rpc, hash);
    world.addresses = addresses;
    const names = { host_earnings: "HostEarnings", token: "TestToken", ...world.v };
    world.abi = {};
    for (const contract of Object.keys(addresses)) {
      world.abi[contract] = chain.artifact(names[contract]).abi;
    }
    const head = await world.rpc("eth_getBlockByNumber", "latest", false);
    world.clock = BigInt(head.timestamp);
    if (registered) await world.register();
    return world;
  }

  /** Offers MODEL by both hosts, at a lowest price of 1. */
  async register() {
    await this.ok(this.deployer, "model_registry", "addTrustedModel",
      [...MODEL_NAME, ethers.sha256("0x00")]);
    if (this.v.modelBound) {
      await this.ok(this.deployer, "model_registry", "setModelRateLimit", [MODEL, this.v.rate]);
    }
    for (const host of [this.host, this.host2]) {
      const stake = 1000n * 10n ** 18n;
      await this.ok(host, "token", "mint", [host, stake]);
      await this.ok(host, "token", "approve", [this.addresses.node_registry, stake]);
      const prices = this.v.pricedHosts ? [1n, 1n] : [];
      await this.ok(host, "node_registry", "registerNode", ["{}", "http://h", [MODEL], ...prices]);
      for (const token of this.v.modelBound ? [NATIVE, this.addresses.token] : []) {
        await this.ok(host, "node_registry", "setModelTokenPricing", [MODEL, token, 1n]);
      }
    }
  }

  stop() {
    this.anvil.stop();
  }

  /** Deploys one more contract, as `deployer`; resolves with { address, abi }. */
  async deploy(name, types = [], args = []) {
    const { abi, bytecode } = chain.artifact(name);
    const words = ethers.AbiCoder.defaultAbiCoder().encode(types, args);
    const result = await this.send(this.deployer, null, ethers.concat([bytecode, words]));
    assert.ok(result.ok, result.reason);
    const nonce = Number(await this.rpc("eth_getTransactionCount", this.deployer, "latest")) - 1;
    return { address: ethers.getCreateAddress({ from: this.deployer, nonce }), abi };
  }

  /** Runs `body` and undoes all it did to the chain. */
  async isolated(body) {
    const [snapshot, clock] = [await this.rpc("evm_snapshot"), this.clock];
    try {
      await body();
    } finally {
      await this.rpc("evm_revert", snapshot);
      this.clock = clock;
    }
  }

  /**
   * Sends one transaction in a block of its own at chain time `at` (default: a second after the
   * last) and returns { ok, reason, logs, gas, at }. The reason comes from the same call on the
   * pending block; call and transaction have to agree.
   */
  async send(from, to, data, { at, value = 0n } = {}) {
    this.clock = at ?? this.clock + 1n;
    await this.rpc("evm_setNextBlockTimestamp", ethers.toQuantity(this.clock));
    const gas = ethers.toQuantity(5_000_000);
    const tx = { from, to, data, gas, value: ethers.toQuantity(value) };
    let reason;
    try {
      await this.rpc("eth_call", tx, "pending");
    } catch (error) {
      reason = chain.revertReason(error.data);
    }
    const hash = await this.rpc("eth_sendTransaction", tx);
    await this.rpc("evm_mine");
    const receipt = await this.rpc("eth_getTransactionReceipt", hash);
    const ok = receipt.status === "0x1";
    assert.equal(ok, reason === undefined, `simulated "${reason}", mined ${receipt.status}`);
    const block = await this.rpc("eth_getBlockByNumber", receipt.blockNumber, false);
    assert.equal(BigInt(block.timestamp), this.clock, "the block has the time asked for");
    return { ok, reason, logs: receipt.logs, gas: BigInt(receipt.gasUsed), at: this.clock };
  }

  /** Calls a function of a deployed contract in a transaction, see `send`. */
  transact(from, contract, method, args, options) {
    const data = this.abi[contract].encodeFunctionData(method, args);
    return this.send(from, this.addresses[contract], data, options);
  }

  /** As `transact`, and it has to succeed. */
  async ok(from, contract, method, args, options) {
    const result = await this.transact(from, contract, method, args, options);
    assert.ok(result.ok, `${method} reverted: ${result.reason}`);
    return result;
  }

  /** As `transact`, and it has to revert with exactly these words. */
  async reverts(reason, from, contract, method, args, options) {
    const result = await this.transact(from, contract, method, args, options);
    assert.equal(result.reason, reason, `${method}: wanted a revert`);
  }

  /** Reads; a single output comes as itself, several as ethers' Result. */
  async read(contract, method, ...args) {
    const to = this.addresses[contract];
    const data = this.abi[contract].encodeFunctionData(method, args);
    const raw = await this.rpc("eth_call", { to, data }, "latest");
    const result = this.abi[contract].decodeFunctionResult(method, raw);
    return result.length === 1 ? result[0] : result;
  }

  async balance(address) {
    return BigInt(await this.rpc("eth_getBalance", address, "latest"));
  }

  /** Events of one transaction as [name(types), ...args]. */
  events(contract, logs) {
    return logs
      .filter((log) => log.address.toLowerCase() === this.addresses[contract].toLowerCase())
      .map((log) => this.abi[contract].parseLog(log))
      .map((log) => [log.signature, ...log.args]);
  }

  /** Units that `tokens` LLM tokens cost, rounded down. */
  cost(tokens, price = this.price) {
    return (tokens * price) / this.v.pricePrecision;
  }

  /**
   * The call that opens a session: { method, args, value }. `way` is native, token or deposit;
   * `vouchers` makes it one that pays by vouchers alone; `tokens` sets the deposit to what so many cost. Defaults: 10,000 tokens at 1e14 units.
   */
  opening(terms = {}) {
    const t = { way: "native", ...OPEN_DEFAULTS, price: this.price, host: this.host, ...terms };
    const deposit = t.deposit ?? this.cost(t.tokens ?? 10_000n, t.price);
    const payment = {
      native: [],
      token: [t.token ?? this.addresses.token, deposit],
      deposit: [t.token ?? NATIVE, deposit],
    }[t.way];
    const model = this.v.modelBound ? [t.model ?? MODEL] : [];
    const window = this.v.modelBound ? [t.window ?? 0n] : [];
    const plain = this.v.modelBound ? "model" : "plain";
    return {
      method: OPENINGS[t.vouchers ? "vouchers" : plain][t.way],
      args: [t.host, ...model, ...payment, t.price, t.maxDuration, t.proofInterval, ...window],
      value: t.way === "native" ? deposit : 0n,
      deposit,
    };
  }

  /** Tries to open a session, see `opening` and `transact`. */
  tryOpen(terms = {}) {
    const { method, args, value } = this.opening(terms);
    const from = terms.depositor ?? this.depositor;
    return this.transact(from, "job_marketplace", method, args, { value });
  }

  /** Opens a session; returns { id, start, deposit, logs }. */
  async open(terms = {}) {
    const { ok, reason, at, logs } = await this.tryOpen(terms);
    assert.ok(ok, `opening reverted: ${reason}`);
    const id = (await this.read("job_marketplace", "nextJobId")) - 1n;
    return { id, start: at, deposit: this.opening(terms).deposit, logs };
  }

  /**
   * Arguments of a claim in the shape of this version. From v4 on the first word of `proof` is the
   * proof hash; v5 and v6 are signed by `signer`, a role, for `host`.
   */
  claimArgs(id, tokens, proof, { signer = "host", signature } = {}) {
    if (this.v.claim === "bytes") return [id, tokens, proof];
    const hash = ethers.dataSlice(proof, 0, 32);
    const key = this.accounts[signer].private_key;
    const signed = () => [signature ?? signClaim(key, hash, this[signer], tokens)];
    return {
      hash: () => [id, tokens, hash, "proof-cid"],
      signed: () => [id, tokens, hash, ...signed(), "proof-cid"],
      "signed+delta": () => [id, tokens, hash, ...signed(), "proof-cid", "delta-cid"],
      "hash+delta": () => [id, tokens, hash, "proof-cid", "delta-cid"],
    }[this.v.claim]();
  }

  /** A claim as the host, or as the role `by`; see `transact` and `claimArgs`. */
  claim(id, tokens, proof, { by = "host", ...options } = {}) {
    const args = this.claimArgs(id, tokens, proof, { signer: by, ...options });
    return this.transact(this[by], "job_marketplace", "submitProofOfWork", args, options);
  }
}

const MODEL_NAME = ["org/model", "weights.gguf"];
const MODEL = ethers.id(MODEL_NAME.join("/"));
/** Seconds of every version here, so that tables hold for all. */
const WINDOW = 30n;
const WEI_PER_TOKEN = 10n ** 14n;
const OPEN_DEFAULTS = { maxDuration: 86_400n, proofInterval: 100n };
const OPENINGS = {
  plain: {
    native: "createSessionJob",
    token: "createSessionJobWithToken",
    deposit: "createSessionFromDeposit",
  },
  model: {
    native: "createSessionJobForModel",
    token: "createSessionJobForModelWithToken",
    deposit: "createSessionFromDepositForModel",
  },
  vouchers: {
    native: "createVoucherSession",
    token: "createVoucherSessionWithToken",
    deposit: "createVoucherSessionFromDeposit",
  },
};

/**
 * What the tests expect of a version: the shape of a claim, tokens a second, who completes, and
 * the words or errors of refusals that differ.
 */
const HOST_ONLY = "Only host can submit proof";
const TRAITS = {
  v3a: { claim: "bytes", rate: 20n, notHost: HOST_ONLY, early: true },
  vouchers: { claim: "bytes", rate: 20n, notHost: HOST_ONLY, early: true },
  v3: { claim: "bytes", rate: 20n, notHost: HOST_ONLY, early: true },
  v4: { claim: "hash", rate: 20n, notHost: HOST_ONLY, early: true },
  "v4-late": { claim: "hash", rate: 2000n, notHost: HOST_ONLY, early: true },
  v5: { claim: "signed", rate: 2000n, notHost: HOST_ONLY, early: false },
  v6: { claim: "signed+delta", rate: 2000n, notHost: HOST_ONLY, early: false },
  // Set in the model registry, and unlike any constant of the others.
  v7: { claim: "hash+delta", rate: 70n, notHost: "Not host", early: false },
};

/** Rule 4: the host's personal signature over what it claims; 65 bytes. */
function signClaim(privateKey, proofHash, host, tokens) {
  const claim = ethers.solidityPackedKeccak256(
    ["bytes32", "address", "uint256"], [proofHash, host, tokens],
  );
  return new ethers.Wallet(privateKey).signMessageSync(ethers.getBytes(claim));
}

/** Proof bytes with a first word of their own for each `n`. */
function proofBytes(n, length = 145) {
  const word = ethers.zeroPadValue(ethers.toBeHex(n), 32);
  return ethers.concat([word, "0x" + "ab".repeat(length - 32)]);
}

/** Wraps node's `test` so that each test starts from the same chain, see `World.start`. */
function worldTests(test, setup) {
  let world;
  test.before(async () => {
    world = await World.start(setup);
  });
  test.after(() => world?.stop());
  // A hung chain fails the test; no outcome depends on this time.
  const options = { timeout: 120_000 };
  return (name, body) => test(name, options, () => world.isolated(() => body(world)));
}

/** Declares the same tests for several versions, each with a chain of its own. */
function versionTests(test, names, declare, setup = {}) {
  for (const name of names) {
    test.describe(name, () => declare(worldTests(test, { ...setup, name }), name));
  }
}

module.exports = {
  MODEL,
  NATIVE,
  OPEN_DEFAULTS,
  TRAITS,
  VERSION_NAMES: Object.keys(VERSIONS),
  WINDOW,
  World,
  proofBytes,
  signClaim,
  versionTests,
  worldTests,
};
