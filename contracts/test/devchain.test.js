// scripts/devchain.sh and scripts/open-session.sh, as a user runs them.
"use strict";

const assert = require("node:assert/strict");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");
const test = require("node:test");
const { spawn, spawnSync } = require("node:child_process");
const chain = require("../chain.js");
const { VERSIONS } = require("../versions.js");

const SCRIPTS = path.resolve(__dirname, "../../scripts");
const { ethers } = chain;

const run = (script, ...args) =>
  spawnSync(path.join(SCRIPTS, script), args, { encoding: "utf8", timeout: 120_000 });

/** A state directory that is removed with the chain in it, however the test ends. */
async function withState(body) {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), "tally-devchain-"));
  try {
    await body(dir);
  } finally {
    run("devchain.sh", "--stop", "--state-dir", dir);
    fs.rmSync(dir, { recursive: true });
  }
}

/** Returns `read(contract, address, method, ...args)`, which resolves with all outputs. */
const reader = (rpc) => async (contract, address, method, ...args) => {
  const { abi } = chain.artifact(contract);
  const data = abi.encodeFunctionData(method, args);
  const raw = await rpc("eth_call", { to: address, data }, "latest");
  return abi.decodeFunctionResult(method, raw);
};

/** Whether anvil's port still answers; its log tells which one it was. */
async function answers(dir) {
  const log = fs.readFileSync(path.join(dir, "anvil.log"), "utf8");
  const port = /^Listening on .*:(\d+)$/m.exec(log)?.[1];
  assert.ok(port, "anvil had started");
  return chain.connect(`http://127.0.0.1:${port}`)("eth_chainId").then(() => true, () => false);
}

test("a_development_chain_is_ready_for_a_node_and_a_client", () =>
  withState(async (dir) => {
    const weights = path.join(dir, "w.gguf");
    fs.writeFileSync(weights, "weights");
    const started = run("devchain.sh", "--state-dir", dir, "--model-file", weights,
      "--model-repo", "org/repo", "--api-url", "http://127.0.0.1:1", "--open-session",
      "--price", "7000000000000", "--deposit", "7000000000000000", "--proof-interval", "200");
    assert.equal(started.status, 0, started.stderr);
    assert.equal(started.stdout.trim().split("\n").length, 1, "one line on standard output");
    const result = JSON.parse(started.stdout);
    const rpc = chain.connect(result.rpc_url);
    const read = reader(rpc);
    const { addresses, accounts, model } = result;
    assert.equal(result.contract_version, "v3");
    assert.equal(Object.hasOwn(result, "payment_token"), false, "only on request");
    for (const address of Object.values(addresses)) {
      assert.notEqual(await rpc("eth_getCode", address, "latest"), "0x");
    }
    assert.equal(Number(await rpc("eth_chainId")), 31337);
    const [url] = await read("NodeRegistry", addresses.node_registry, "getNodeApiUrl",
      accounts.host.address);
    assert.equal(url, "http://127.0.0.1:1");
    assert.equal(model.id, ethers.id("org/repo/w.gguf"));
    const [hash] = await read("ModelRegistry", addresses.model_registry, "getModelHash", model.id);
    assert.equal(hash, ethers.sha256(ethers.toUtf8Bytes("weights")));
    const job = await read("JobMarketplace", addresses.job_marketplace, "sessionJobs", 1);
    assert.equal(result.job.id, 1);
    assert.deepEqual(
      [job.depositor, job.host, job.deposit, job.pricePerToken, job.proofInterval],
      [accounts.depositor.address, accounts.host.address, 7n * 10n ** 15n, 7n * 10n ** 12n, 200n],
    );

    const again = run("devchain.sh", "--state-dir", dir);
    assert.notEqual(again.status, 0, "a second chain in one state directory");
    const more = run("open-session.sh", "--rpc", result.rpc_url, "--host", accounts.host.address,
      "--marketplace", addresses.job_marketplace, "--key", accounts.depositor2.private_key);
    assert.equal(more.status, 0, more.stderr);
    assert.deepEqual(JSON.parse(more.stdout), { job_id: 2 });
    for (const [address, args, words] of [
      [accounts.host.address, [], "no contract"],
      [addresses.proof_system, [], "no JobMarketplace"],
      [addresses.job_marketplace, ["--contract", "v5"], "--marketplace is v3a or v3"],
      [addresses.job_marketplace, ["--model-id", model.id], "bound to a model"],
      [addresses.job_marketplace, ["--proof-timeout-window", "60"], "bound to a model"],
      [addresses.job_marketplace, ["--token", "0x1"], "no address"],
    ]) {
      const wrong = run("open-session.sh", "--rpc", result.rpc_url, "--marketplace", address,
        "--host", accounts.host.address, ...args);
      assert.notEqual(wrong.status, 0, wrong.stdout);
      assert.match(wrong.stderr, new RegExp(words));
    }

    const stopped = run("devchain.sh", "--stop", "--state-dir", dir);
    assert.equal(stopped.status, 0, stopped.stderr);
    assert.equal(await answers(dir), false);
    assert.equal(run("devchain.sh", "--stop", "--state-dir", dir).status, 0, "stop is idempotent");
  }));

for (const [version, traits] of Object.entries(VERSIONS)) {
  test(`a_chain_of_${version}_takes_sessions_in_native_coin_and_in_an_erc20`, () =>
    withState(async (dir) => {
      const weiPerToken = 10n ** 14n;
      const rate = traits.modelBound ? ["--rate-limit", "77", "--proof-timeout-window", "60"] : [];
      const started = run("devchain.sh", "--state-dir", dir, "--contract", version,
        "--open-session", "--payment-token", "erc20", "--api-url-2", "http://127.0.0.1:2", ...rate);
      assert.equal(started.status, 0, started.stderr);
      const result = JSON.parse(started.stdout);
      const { rpc_url: url, addresses, accounts, model, job } = result;
      assert.equal(result.contract_version, version);
      assert.equal(BigInt(result.price_precision), traits.pricePrecision);
      assert.equal(BigInt(result.dispute_window), traits.disputeWindow);
      assert.equal(result.payment_token, addresses.token);
      assert.equal(job.payment_token, addresses.token);
      const read = reader(chain.connect(url));
      const session = (id) =>
        read(traits.job_marketplace, addresses.job_marketplace, "sessionJobs", id);

      const open = (...args) => run("open-session.sh", "--rpc", url, "--marketplace",
        addresses.job_marketplace, "--host", accounts.host2.address, ...args);
      const native = open("--contract", version);
      assert.equal(native.status, 0, native.stderr);
      assert.deepEqual(JSON.parse(native.stdout), { job_id: 2 });
      const token = open("--payment-token", "erc20", "--key", accounts.depositor2.private_key);
      assert.equal(token.status, 0, token.stderr);
      assert.deepEqual(JSON.parse(token.stdout), { job_id: 3, token: addresses.token });
      for (const [id, paymentToken, host] of [
        [1, addresses.token, accounts.host],
        [2, ethers.ZeroAddress, accounts.host2],
        [3, addresses.token, accounts.host2],
      ]) {
        const found = await session(id);
        const price = weiPerToken * traits.pricePrecision;
        assert.deepEqual(
          [found.paymentToken, found.host, found.deposit, found.pricePerToken, found.status],
          [paymentToken, host.address, 10n ** 18n, price, 0n],
        );
      }
      if (!traits.modelBound) return;
      const market = [traits.job_marketplace, addresses.job_marketplace];
      for (const id of [1, 2, 3]) {
        assert.deepEqual([...(await read(...market, "sessionModel", id))], [model.id]);
      }
      assert.equal((await session(1)).proofTimeoutWindow, 60n);
      assert.equal((await session(2)).proofTimeoutWindow, 300n);
      const [limit] = await read(traits.model_registry, addresses.model_registry,
        "getModelRateLimit", model.id);
      assert.equal(limit, 77n);
    }));
}

test("a_failed_deployment_leaves_no_chain_running", () =>
  withState(async (dir) => {
    for (const args of [["--model-file", "/nonexistent"], ["--price", "1e9"],
      ["--contract", "v8"], ["--payment-token", "gold"], ["--rate-limit", "9"],
      ["--contract", "v7", "--open-session", "--proof-timeout-window", "59"],
      ["--open-session", "--proof-interval", "99"]]) {
      const failed = run("devchain.sh", "--state-dir", dir, ...args);
      assert.notEqual(failed.status, 0, args.join(" "));
      assert.equal(failed.stdout, "");
      assert.equal(await answers(dir), false, args.join(" "));
      assert.deepEqual(fs.readdirSync(dir), ["anvil.log"]);
    }
  }));

test("unknown_and_incomplete_options_are_errors", () =>
  withState(async (dir) => {
    for (const args of [["--prot", "1"], ["--port"], ["--port", "x"], ["extra"], ["--contract"]]) {
      const refused = run("devchain.sh", "--state-dir", dir, ...args);
      assert.notEqual(refused.status, 0, args.join(" "));
      assert.equal(refused.stdout, "");
    }
    assert.deepEqual(fs.readdirSync(dir), [], "nothing was started");
    for (const args of [[], ["--rpc", "http://127.0.0.1:1"], ["--what", "1"]]) {
      assert.notEqual(run("open-session.sh", ...args).status, 0, args.join(" "));
    }
  }));

test("a_port_in_use_is_an_error_that_says_so", () =>
  withState((first) =>
    withState(async (second) => {
      const chainOne = run("devchain.sh", "--state-dir", first);
      assert.equal(chainOne.status, 0, chainOne.stderr);
      const { port } = new URL(JSON.parse(chainOne.stdout).rpc_url);
      const taken = run("devchain.sh", "--state-dir", second, "--port", port);
      assert.notEqual(taken.status, 0);
      assert.match(taken.stderr, /in use/i);
      assert.deepEqual(fs.readdirSync(second), ["anvil.log"]);
    })));

test("a_foreground_chain_ends_with_its_script", () =>
  withState(async (dir) => {
    const script = path.join(SCRIPTS, "devchain.sh");
    const child = spawn(script, ["--foreground", "--block-time", "0", "--state-dir", dir], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    const ended = new Promise((resolve) => child.on("exit", (code) => resolve(code)));
    const line = await new Promise((resolve, reject) => {
      let text = "";
      child.stdout.on("data", (part) => {
        text += part;
        if (text.includes("\n")) resolve(text);
      });
      child.on("exit", (code) => reject(new Error(`ended early with ${code}`)));
    });
    assert.equal(JSON.parse(line).chain_id, 31337);
    assert.equal(await answers(dir), true);
    child.kill("SIGTERM");
    assert.equal(await ended, 143);
    assert.equal(await answers(dir), false);
    assert.deepEqual(fs.readdirSync(dir), ["anvil.log"]);
  }));

test("a_voucher_session_opens_where_the_contract_has_them_and_nowhere_else", () =>
  withState(async (dir) => {
    const wrong = run("devchain.sh", "--state-dir", dir, "--open-session", "--session", "voucher");
    assert.notEqual(wrong.status, 0, wrong.stdout);
    assert.match(wrong.stderr, /--session voucher is for the contract version vouchers/);
    const started = run("devchain.sh", "--state-dir", dir, "--contract", "vouchers",
      "--open-session", "--session", "voucher");
    assert.equal(started.status, 0, started.stderr);
    const result = JSON.parse(started.stdout);
    assert.deepEqual([result.contract_version, result.job.vouchers], ["vouchers", true]);
    const { job_marketplace: marketplace } = result.addresses;
    const open = (...args) => run("open-session.sh", "--rpc", result.rpc_url,
      "--marketplace", marketplace, "--host", result.accounts.host.address, ...args);
    for (const [args, job] of [
      [[], { job_id: 2 }],
      [["--session", "voucher"], { job_id: 3 }],
      [["--session", "voucher", "--payment-token", "erc20"],
        { job_id: 4, token: result.addresses.token }],
    ]) {
      const opened = open(...args);
      assert.equal(opened.status, 0, opened.stderr);
      assert.deepEqual(JSON.parse(opened.stdout), job);
    }
    const kinds = [];
    for (const id of [1, 2, 3, 4]) {
      const read = reader(chain.connect(result.rpc_url));
      kinds.push(...(await read("JobMarketplaceVouchers", marketplace, "isVoucherSession", id)));
    }
    assert.deepEqual(kinds, [true, false, true, true]);
    for (const [args, words] of [
      [["--contract", "v3a"], "--marketplace is vouchers"],
      [["--session", "both"], "--session is plain or voucher"],
    ]) {
      const refused = open(...args);
      assert.notEqual(refused.status, 0, refused.stdout);
      assert.match(refused.stderr, new RegExp(words));
    }
  }));
