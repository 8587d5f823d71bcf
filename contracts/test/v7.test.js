// What only v7 has, docs/spec/contract.md sections 1 to 4: sessions bound to a model, a rate for
// each model, a price for each model and token, a fee for nothing, delegates.
"use strict";

const assert = require("node:assert/strict");
const test = require("node:test");
const { ethers, DEFAULT_TERMS } = require("../chain.js");
const { MODEL, NATIVE, WINDOW, proofBytes, versionTests } = require("./support.js");

const SESSION = "job_marketplace";
const MODELS = "model_registry";
const NODES = "node_registry";
const EARNINGS = "host_earnings";
const SECOND = ethers.id("org/model/second.gguf");
const share = (payment) => payment - (payment * DEFAULT_TERMS.feeBasisPoints) / 10_000n;

versionTests(test, ["v7"], (rule) => {
  rule("a_session_opens_only_for_a_model_that_is_approved_offered_and_priced", async (w) => {
    const open = async (terms = {}) => (await w.tryOpen({ model: SECOND, ...terms })).reason;
    assert.equal(await open(), `ModelNotApproved(${SECOND})`);
    const added = ["org/model", "second.gguf", ethers.sha256("0x01")];
    await w.ok(w.deployer, MODELS, "addTrustedModel", added);
    assert.equal(await open(), `ModelNotSupported(${w.host}, ${SECOND})`);
    await w.ok(w.host, NODES, "updateSupportedModels", [[MODEL, SECOND]]);
    assert.equal(await open(), `ModelNotPriced(${w.host}, ${SECOND}, ${NATIVE})`);
    await w.ok(w.host, NODES, "setModelTokenPricing", [SECOND, NATIVE, 5000n]);
    const low = `PriceBelowMinimum(4999, 5000)`;
    for (const [price, reason] of [[4999n, low], [5000n, undefined], [5001n, undefined]]) {
      assert.equal(await open({ price, deposit: 10n ** 15n }), reason, String(price));
    }
    assert.equal(await w.read(SESSION, "sessionModel", 1n), SECOND);
    assert.equal(await w.read(SESSION, "sessionModel", 0n), ethers.ZeroHash);
    assert.equal(await w.read(SESSION, "sessionModel", 99n), ethers.ZeroHash);
    const { token } = w.addresses;
    assert.equal(await open({ way: "token", deposit: 10n ** 6n, price: 10n }),
      `ModelNotPriced(${w.host}, ${SECOND}, ${token})`, "each token is priced by itself");
    await w.ok(w.deployer, MODELS, "setModelApproval", [SECOND, false]);
    assert.equal(await open(), `ModelNotApproved(${SECOND})`);
  });

  rule("prices_are_set_by_the_host_for_what_it_offers", async (w) => {
    const price = (host, ...args) => w.transact(host, NODES, "setModelTokenPricing", args);
    assert.equal((await price(w.stranger, MODEL, NATIVE, 1n)).reason, "Not registered");
    assert.equal((await price(w.host, SECOND, NATIVE, 1n)).reason, "Model not supported");
    assert.equal((await price(w.host, MODEL, NATIVE, 0n)).reason, "Invalid price");
    const set = await w.ok(w.host, NODES, "setModelTokenPricing", [MODEL, NATIVE, 7n]);
    assert.deepEqual(w.events(NODES, set.logs), [
      ["ModelTokenPricingUpdated(address,bytes32,address,uint256)", w.host, MODEL, NATIVE, 7n],
    ]);
    const read = (host) => w.read(NODES, "getModelPricing", host, MODEL, NATIVE);
    assert.equal(await read(w.host), 7n);
    assert.equal(await read(w.host2), 1n);
    assert.equal(await read(w.stranger), 0n);
    await w.ok(w.host, NODES, "unregisterNode", []);
    assert.equal(await read(w.host), 0n);
  });

  rule("there_is_no_way_to_open_a_session_without_a_model", async (w) => {
    const old = new ethers.Interface([
      "function createSessionJob(address,uint256,uint256,uint256) payable",
    ]);
    const args = [w.host, w.price, 86_400n, 100n];
    const data = old.encodeFunctionData("createSessionJob", args);
    const value = 10n ** 18n;
    // The fallback keeps the deposit, and no session is there.
    const result = await w.send(w.depositor, w.addresses.job_marketplace, data, { value });
    assert.ok(result.ok);
    assert.equal(result.logs.length, 0);
    assert.equal(await w.read(SESSION, "nextJobId"), 1n);
    assert.equal(await w.balance(w.addresses.job_marketplace), value);
  });

  rule("the_rate_is_the_models_and_holds_for_open_sessions_at_once", async (w) => {
    const rate = (tokens) => w.ok(w.deployer, MODELS, "setModelRateLimit", [MODEL, tokens]);
    const { id, start } = await w.open({ tokens: 1_000_000n });
    const excess = "Excessive tokens claimed";
    let last = start;
    for (const [n, limit] of [[1, 1000n], [2, 25n], [3, 5000n]]) {
      await rate(limit);
      assert.equal(await w.read(MODELS, "getModelRateLimit", MODEL), limit);
      const [over, exact] = [last + 10n, last + 11n];
      const fast = await w.claim(id, 10n * limit + 1n, proofBytes(n), { at: over });
      assert.equal(fast.reason, excess, String(limit));
      const passed = await w.claim(id, 11n * limit, proofBytes(n), { at: exact });
      assert.ok(passed.ok, passed.reason);
      last = exact;
    }
    await rate(0n);
    const nothing = await w.claim(id, 100n, proofBytes(4), { at: last + 10_000n });
    assert.equal(nothing.reason, excess, "a model without a rate earns nothing");
  });

  rule("two_models_have_two_rates", async (w) => {
    await w.ok(w.deployer, MODELS, "addTrustedModel",
      ["org/model", "second.gguf", ethers.sha256("0x01")]);
    await w.ok(w.deployer, MODELS, "setModelRateLimit", [SECOND, 1000n]);
    await w.ok(w.host, NODES, "updateSupportedModels", [[MODEL, SECOND]]);
    await w.ok(w.host, NODES, "setModelTokenPricing", [SECOND, NATIVE, 1n]);
    const slow = await w.open();
    const fast = await w.open({ model: SECOND });
    const at = fast.start + 5n;
    assert.ok((await w.claim(fast.id, 5000n, proofBytes(1), { at })).ok);
    const refused = await w.claim(slow.id, 5000n, proofBytes(2), { at: at + 1n });
    assert.equal(refused.reason, "Excessive tokens claimed");
  });

  rule("a_rate_belongs_to_the_owner_and_to_a_known_model", async (w) => {
    const set = (from, model) => w.transact(from, MODELS, "setModelRateLimit", [model, 5n]);
    assert.equal((await set(w.stranger, MODEL)).reason, "Not owner");
    assert.equal((await set(w.deployer, SECOND)).reason, "Unknown model");
    assert.equal(await w.read(MODELS, "getModelRateLimit", SECOND), 0n);
  });

  rule("a_depositor_that_completes_before_any_proof_pays_the_minimum", async (w) => {
    const [minimum, { id, deposit }] = [100n, await w.open()];
    assert.equal(await w.read(SESSION, "minTokensFee"), minimum);
    const result = await w.ok(w.depositor, SESSION, "completeSessionJob", [id, ""]);
    const payment = w.cost(minimum);
    assert.deepEqual(w.events(SESSION, result.logs), [
      ["SessionCompleted(uint256,uint256,uint256,uint256)", id, 0n, share(payment),
        deposit - payment],
    ]);
    assert.equal(await w.read(EARNINGS, "getBalance", w.host, NATIVE), share(payment));
    const job = await w.read(SESSION, "sessionJobs", id);
    assert.deepEqual([job.tokensUsed, job.refundedToUser], [0n, deposit - payment]);
  });

  rule("the_minimum_is_due_from_the_depositor_alone_and_only_without_a_proof", async (w) => {
    const earned = () => w.read(EARNINGS, "getBalance", w.host, NATIVE);
    const byHost = await w.open();
    await w.ok(w.host, SESSION, "completeSessionJob", [byHost.id, ""], { at: w.clock + WINDOW });
    const silent = await w.open();
    const at = silent.start + 301n;
    await w.ok(w.depositor, SESSION, "triggerSessionTimeout", [silent.id], { at });
    assert.equal(await earned(), 0n);
    const proven = await w.open();
    // Not the minimum's own number, so that one is not taken for the other.
    const claim = await w.claim(proven.id, 150n, proofBytes(1), { at: w.clock + 5n });
    assert.ok(claim.ok, claim.reason);
    await w.ok(w.depositor, SESSION, "completeSessionJob", [proven.id, ""]);
    assert.equal(await earned(), share(w.cost(150n)));
  });

  rule("the_minimum_is_the_owners_setting_and_never_more_than_the_deposit", async (w) => {
    await w.reverts("Not owner", w.stranger, SESSION, "setMinTokensFee", [1n]);
    for (const [fee, paid] of [[0n, 0n], [999n, 999n], [1000n, 1000n], [1001n, 1000n]]) {
      await w.isolated(async () => {
        await w.ok(w.deployer, SESSION, "setMinTokensFee", [fee]);
        const { id, deposit } = await w.open({ tokens: 1000n });
        await w.ok(w.depositor, SESSION, "completeSessionJob", [id, ""]);
        const job = await w.read(SESSION, "sessionJobs", id);
        assert.equal(job.refundedToUser, deposit - w.cost(paid), String(fee));
      });
    }
  });

  rule("a_delegate_opens_sessions_from_a_deposit_with_its_own_event", async (w) => {
    const deposit = 10n ** 17n;
    await w.ok(w.depositor, SESSION, "depositNative", [], { value: 2n * deposit });
    const terms = [w.depositor, w.host, NATIVE, deposit, w.price, 86_400n, 100n];
    const call = [w.stranger, SESSION, "createSessionForModelAsDelegate", [terms, MODEL, 60n]];
    await w.reverts(`NotDelegate(${w.depositor}, ${w.stranger})`, ...call);
    await w.ok(w.depositor, SESSION, "authorizeDelegate", [w.stranger, true]);
    const opened = await w.ok(...call);
    assert.deepEqual(w.events(SESSION, opened.logs), [
      ["SessionCreatedByDelegate(uint256,address,address)", 1n, w.depositor, w.stranger],
    ]);
    const job = await w.read(SESSION, "sessionJobs", 1n);
    assert.deepEqual([job.depositor, job.host, job.deposit], [w.depositor, w.host, deposit]);
    await w.ok(w.depositor, SESSION, "authorizeDelegate", [w.stranger, false]);
    await w.reverts(`NotDelegate(${w.depositor}, ${w.stranger})`, ...call);
  });
});
