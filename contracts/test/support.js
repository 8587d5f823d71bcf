// A real anvil for a test file, with its clock in the test's hands. It must never leave an anvil
// running: the process is killed when the file ends, and again when node exits for any reason.
"use strict";

const assert = require("node:assert/strict");
const fs = require("node:fs");
const path = require("node:path");
const { spawn } = require("node:child_process");
const chain = require("../chain.js");

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

/** Starts anvil on a port of the system's choice; resolves with { url, stop }. */
function startAnvil() {
  const child = spawn(anvilPath(), ["--port", "0", "--slots-in-an-epoch", "1"], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const stop = () => child.kill("SIGKILL");
  process.on("exit", stop);
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
    process.once(signal, () => process.exit(1));
  }
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
  static async start() {
    const world = new World();
    world.anvil = await startAnvil();
    world.rpc = chain.connect(world.anvil.url);
    await world.rpc("anvil_setLoggingEnabled", false);
    // Blocks are made by evm_mine alone, which returns when the block is there.
    await world.rpc("evm_setAutomine", false);
    world.accounts = chain.devAccounts();
    for (const [role, account] of Object.entries(world.accounts)) world[role] = account.address;
    const signer = new chain.Signer(world.rpc, world.accounts.deployer.private_key);
    const { addresses, hashes } = await chain.deployAll(world.rpc, signer, world.treasury);
    await world.rpc("evm_mine");
    for (const hash of hashes) await chain.mined(world.rpc, hash);
    world.addresses = addresses;
    world.abi = {
      job_marketplace: chain.artifact("JobMarketplace").abi,
      node_registry: chain.artifact("NodeRegistry").abi,
      model_registry: chain.artifact("ModelRegistry").abi,
      proof_system: chain.artifact("ProofSystem").abi,
      host_earnings: chain.artifact("HostEarnings").abi,
      token: chain.artifact("TestToken").abi,
    };
    const head = await world.rpc("eth_getBlockByNumber", "latest", false);
    world.clock = BigInt(head.timestamp);
    return world;
  }

  stop() {
    this.anvil.stop();
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

  /** Opens a native session; returns { id, start }. Defaults: 10,000 tokens at 1e14 wei. */
  async open(terms = {}) {
    const t = { ...OPEN_DEFAULTS, host: this.host, depositor: this.depositor, ...terms };
    const args = [t.host, t.price, t.maxDuration, t.proofInterval];
    const { at } = await this.ok(t.depositor, "job_marketplace", "createSessionJob", args, {
      value: t.deposit,
    });
    return { id: (await this.read("job_marketplace", "nextJobId")) - 1n, start: at };
  }

  /** A claim as the host, see `transact`. */
  claim(id, tokens, proof, options) {
    const args = [id, tokens, proof];
    return this.transact(this.host, "job_marketplace", "submitProofOfWork", args, options);
  }
}

const OPEN_DEFAULTS = {
  deposit: 10n ** 18n,
  price: 10n ** 14n,
  maxDuration: 86_400n,
  proofInterval: 100n,
};

/** Proof bytes with a first word of their own for each `n`. */
function proofBytes(n, length = 145) {
  const word = ethers.zeroPadValue(ethers.toBeHex(n), 32);
  return ethers.concat([word, "0x" + "ab".repeat(length - 32)]);
}

/** Wraps node's `test` so that each test starts from the same chain. */
function worldTests(test) {
  let world;
  test.before(async () => {
    world = await World.start();
  });
  test.after(() => world?.stop());
  // A hung chain fails the test; no outcome depends on this time.
  const options = { timeout: 120_000 };
  return (name, body) => test(name, options, () => world.isolated(() => body(world)));
}

module.exports = { NATIVE, OPEN_DEFAULTS, World, proofBytes, worldTests };
