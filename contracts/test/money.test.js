// Opening, ending and dividing sessions, docs/spec/contract.md section 3.
"use strict";

const assert = require("node:assert/strict");
const test = require("node:test");
const { artifact, ethers, DEFAULT_TERMS } = require("../chain.js");
const { NATIVE, OPEN_DEFAULTS, proofBytes, worldTests } = require("./support.js");

const rule = worldTests(test);
const PRICE = OPEN_DEFAULTS.price;
const FEE = DEFAULT_TERMS.feeBasisPoints;
const WINDOW = DEFAULT_TERMS.disputeWindow;
const SESSION = "job_marketplace";
const COMPLETED = "SessionCompleted(uint256,uint256,uint256,uint256)";
const COMPLETED_BY = "SessionCompleted(uint256,address,uint256,uint256,uint256)";
const TIMED_OUT = "SessionTimedOut(uint256,uint256,uint256)";

/** A session with `tokens` proven, ready to end. */
async function proven(w, tokens, terms = {}) {
  const session = await w.open(terms);
  const claim = await w.claim(session.id, tokens, proofBytes(session.id), {
    at: session.start + tokens / 20n + 1n,
  });
  assert.ok(claim.ok, claim.reason);
  return { ...session, lastProof: claim.at };
}

rule("a_session_is_recorded_as_it_was_opened", async (w) => {
  const { id, start } = await w.open();
  assert.equal(id, 1n);
  const s = await w.read(SESSION, "sessionJobs", id);
  assert.deepEqual(s.toArray(), [
    1n, w.depositor, w.depositor, w.host, NATIVE, OPEN_DEFAULTS.deposit, PRICE, 0n, 86_400n,
    start, start, 100n, 0n, 0n, 0n, "",
  ]);
  const second = await w.open();
  assert.equal(second.id, 2n);
  assert.equal(await w.read(SESSION, "hostSessions", w.host, 0n), 1n);
  assert.equal(await w.read(SESSION, "hostSessions", w.host, 1n), 2n);
});

rule("a_session_opens_only_within_its_bounds", async (w) => {
  const min = DEFAULT_TERMS.minDeposit;
  const year = 365n * 86_400n;
  const table = [
    [{ deposit: min - 1n, price: 1n }, "Insufficient deposit"],
    [{ deposit: min, price: 1n }, undefined],
    [{ deposit: min + 1n, price: 1n }, undefined],
    [{ proofInterval: 99n }, "Invalid proof interval"],
    [{ proofInterval: 100n }, undefined],
    [{ proofInterval: 101n }, undefined],
    [{ deposit: 100n * PRICE - 1n }, "Deposit below interval"],
    [{ deposit: 100n * PRICE }, undefined],
    [{ deposit: 100n * PRICE + 1n }, undefined],
    [{ price: 0n }, "Invalid price"],
    [{ maxDuration: 0n }, "Invalid duration"],
    [{ maxDuration: 1n }, undefined],
    [{ maxDuration: year }, undefined],
    [{ maxDuration: year + 1n }, "Invalid duration"],
    [{ host: NATIVE }, "Invalid host"],
    [{ host: w.stranger }, undefined], // v3 does not ask whether the host is registered
  ];
  for (const [terms, reason] of table) {
    const t = { ...OPEN_DEFAULTS, host: w.host, ...terms };
    const args = [t.host, t.price, t.maxDuration, t.proofInterval];
    const value = t.deposit;
    const result = await w.transact(w.depositor, SESSION, "createSessionJob", args, { value });
    assert.equal(result.reason, reason, JSON.stringify(Object.keys(terms)));
  }
});

rule("the_three_ways_to_open_announce_themselves", async (w) => {
  const terms = [PRICE, 86_400n, 100n];
  const value = 10n ** 17n;
  const created = "SessionJobCreated(uint256,address,address,uint256)";
  const inlineArgs = [w.host, ...terms];
  const inline = await w.ok(w.depositor, SESSION, "createSessionJob", inlineArgs, { value });
  assert.deepEqual(w.events(SESSION, inline.logs), [[created, 1n, w.depositor, w.host, value]]);

  await w.ok(w.depositor, "token", "mint", [w.depositor, 10_000_000n]);
  await w.ok(w.depositor, "token", "approve", [w.addresses.job_marketplace, 10_000_000n]);
  const tokenArgs = [w.host, w.addresses.token, 1_000_000n, 10n, 86_400n, 100n];
  const token = await w.ok(w.depositor, SESSION, "createSessionJobWithToken", tokenArgs);
  assert.deepEqual(w.events(SESSION, token.logs), [[created, 2n, w.depositor, w.host, 1_000_000n]]);

  await w.ok(w.depositor2, SESSION, "depositNative", [], { value });
  const fromArgs = [w.host, NATIVE, value, ...terms];
  const from = await w.ok(w.depositor2, SESSION, "createSessionFromDeposit", fromArgs);
  assert.deepEqual(w.events(SESSION, from.logs), [
    ["SessionCreatedByDepositor(uint256,address,address,uint256)", 3n, w.depositor2, w.host, value],
  ]);
  assert.equal(await w.read(SESSION, "getDepositBalance", w.depositor2, NATIVE), 0n);
  const broke = "Insufficient balance";
  await w.reverts(broke, w.depositor2, SESSION, "createSessionFromDeposit", fromArgs);
});

rule("the_depositor_completes_at_any_time_others_after_the_window_from_the_start", async (w) => {
  const table = [
    ["depositor", 1n, undefined],
    ["host", WINDOW - 1n, "Must wait dispute window"],
    ["host", WINDOW, undefined],
    ["host", WINDOW + 1n, undefined],
    ["stranger", WINDOW - 1n, "Must wait dispute window"],
    ["stranger", WINDOW, undefined],
  ];
  for (const [role, after, reason] of table) {
    await w.isolated(async () => {
      const { id, start } = await w.open();
      const at = start + after;
      const result = await w.transact(w[role], SESSION, "completeSessionJob", [id, "c"], { at });
      assert.equal(result.reason, reason, `${role} after ${after} s`);
    });
  }
  // The window runs from the start: a late proof does not extend it.
  const { id, lastProof, start } = await proven(w, 500n);
  assert.ok(lastProof > start + WINDOW - 5n);
  await w.ok(w.host, SESSION, "completeSessionJob", [id, ""], { at: start + WINDOW });
});

rule("a_timeout_needs_one_of_two_deadlines_to_be_past", async (w) => {
  const silence = 3n * 100n;
  const table = [
    [{ maxDuration: 50n }, 49n, "Session not timed out"],
    [{ maxDuration: 50n }, 50n, "Session not timed out"],
    [{ maxDuration: 50n }, 51n, undefined],
    [{}, silence - 1n, "Session not timed out"],
    [{}, silence, "Session not timed out"],
    [{}, silence + 1n, undefined],
    [{ proofInterval: 101n }, silence + 1n, "Session not timed out"],
    [{ proofInterval: 101n }, silence + 4n, undefined],
  ];
  for (const [terms, after, reason] of table) {
    await w.isolated(async () => {
      const { id, start } = await w.open(terms);
      const at = start + after;
      const result = await w.transact(w.stranger, SESSION, "triggerSessionTimeout", [id], { at });
      assert.equal(result.reason, reason, `after ${after} s`);
    });
  }
  // Silence counts from the last proof, and proven tokens are paid.
  const { id, lastProof } = await proven(w, 100n);
  const at = lastProof + silence;
  const early = "Session not timed out";
  await w.reverts(early, w.stranger, SESSION, "triggerSessionTimeout", [id], { at });
  const result = await w.ok(w.stranger, SESSION, "triggerSessionTimeout", [id], { at: at + 1n });
  const earned = (100n * PRICE * (10_000n - FEE)) / 10_000n;
  const refund = OPEN_DEFAULTS.deposit - 100n * PRICE;
  assert.deepEqual(w.events(SESSION, result.logs), [[TIMED_OUT, id, earned, refund]]);
  assert.equal(await w.read("host_earnings", "getBalance", w.host, NATIVE), earned);
  const s = await w.read(SESSION, "sessionJobs", id);
  assert.deepEqual([s.status, s.withdrawnByHost, s.refundedToUser], [2n, earned, refund]);
});

rule("a_settlement_divides_the_deposit_into_fee_earnings_and_refund", async (w) => {
  // 101 tokens at an odd price: the fee rounds down, nothing is lost.
  const price = 10n ** 14n + 7n;
  const deposit = 1000n * price + 3n;
  const { id } = await proven(w, 101n, { price, deposit });
  const [payment, before] = [101n * price, await w.balance(w.depositor)];
  const fee = (payment * FEE) / 10_000n;
  const refund = deposit - payment;
  // A stranger completes, so that the depositor's balance moves by the refund alone.
  const result = await w.ok(w.stranger, SESSION, "completeSessionJob", [id, "cid-1"], {
    at: w.clock + WINDOW,
  });
  assert.deepEqual(w.events(SESSION, result.logs), [
    [COMPLETED, id, 101n, payment - fee, refund],
    [COMPLETED_BY, id, w.stranger, 101n, payment, refund],
  ]);
  assert.equal((await w.balance(w.depositor)) - before, refund);
  assert.equal(await w.read("host_earnings", "getBalance", w.host, NATIVE), payment - fee);
  assert.equal(await w.balance(w.addresses.host_earnings), payment - fee);
  assert.equal(await w.read(SESSION, "accumulatedTreasuryNative"), fee);
  assert.equal(await w.balance(w.addresses.job_marketplace), fee);
  const s = await w.read(SESSION, "sessionJobs", id);
  assert.deepEqual(
    [s.status, s.withdrawnByHost, s.refundedToUser, s.conversationCID],
    [1n, payment - fee, refund, "cid-1"],
  );
  assert.equal(await w.read(SESSION, "getDepositBalance", w.depositor, NATIVE), 0n);
  await w.reverts("Only treasury", w.stranger, SESSION, "withdrawTreasuryNative", []);
  await w.ok(w.treasury, SESSION, "withdrawTreasuryNative", []);
  assert.equal(await w.balance(w.addresses.job_marketplace), 0n);
});

rule("completing_before_the_last_proof_forfeits_it", async (w) => {
  const { id } = await w.open();
  await w.ok(w.depositor, SESSION, "completeSessionJob", [id, ""], { at: w.clock + 10n });
  const late = await w.claim(id, 100n, proofBytes(1), { at: w.clock + 10n });
  assert.equal(late.reason, "Session not active");
  assert.equal(await w.read("host_earnings", "getBalance", w.host, NATIVE), 0n);
});

rule("a_session_ends_once_and_an_unknown_one_never", async (w) => {
  const { id } = await proven(w, 100n);
  await w.ok(w.depositor, SESSION, "completeSessionJob", [id, ""]);
  const at = () => ({ at: w.clock + 100_000n });
  await w.reverts("Session not active", w.depositor, SESSION, "completeSessionJob", [id, ""], at());
  await w.reverts("Session not active", w.depositor, SESSION, "triggerSessionTimeout", [id], at());
  await w.reverts("Session not found", w.stranger, SESSION, "completeSessionJob", [99n, ""], at());
  await w.reverts("Session not found", w.stranger, SESSION, "triggerSessionTimeout", [99n], at());
});

rule("a_depositor_that_refuses_its_refund_reverts_the_whole_settlement", async (w) => {
  const { abi, bytecode } = artifact("RefusingDepositor");
  await w.send(w.deployer, null, bytecode);
  const nonce = Number(await w.rpc("eth_getTransactionCount", w.deployer, "latest")) - 1;
  const refuser = ethers.getCreateAddress({ from: w.deployer, nonce });
  const call = (method, args, options) =>
    w.send(w.depositor, refuser, abi.encodeFunctionData(method, args), options);
  const terms = [w.addresses.job_marketplace, w.host, PRICE, 86_400n, 100n];
  assert.ok((await call("open", terms, { value: 10n ** 17n })).ok);
  const first = await w.claim(1n, 100n, proofBytes(1), { at: w.clock + 5n });
  assert.ok(first.ok, first.reason);

  const refused = await call("complete", [w.addresses.job_marketplace, 1n]);
  assert.equal(refused.reason, "ETH refund failed");
  const late = { at: w.clock + 1000n };
  await w.reverts("ETH refund failed", w.host, SESSION, "completeSessionJob", [1n, ""], late);
  await w.reverts("ETH refund failed", w.host, SESSION, "triggerSessionTimeout", [1n]);
  assert.equal((await w.read(SESSION, "sessionJobs", 1n)).status, 0n);
  assert.equal(await w.read("host_earnings", "getBalance", w.host, NATIVE), 0n);

  assert.ok((await call("setAccepts", [true])).ok);
  await w.ok(w.host, SESSION, "completeSessionJob", [1n, ""]);
  assert.equal(await w.balance(refuser), 10n ** 17n - 100n * PRICE);
});

rule("a_client_can_withdraw_the_inline_deposit_and_leave_the_settlement_unfunded", async (w) => {
  const { id } = await proven(w, 100n);
  const deposit = OPEN_DEFAULTS.deposit;
  await w.reverts("Insufficient balance", w.depositor, SESSION, "withdrawNative", [deposit + 1n]);
  await w.ok(w.depositor, SESSION, "withdrawNative", [deposit]);
  assert.equal(await w.balance(w.addresses.job_marketplace), 0n);
  assert.equal((await w.read(SESSION, "sessionJobs", id)).deposit, deposit);
  await w.reverts(
    "Transfer to HostEarnings failed", w.host, SESSION, "completeSessionJob", [id, ""],
    { at: w.clock + 1000n },
  );
  assert.equal((await w.read(SESSION, "sessionJobs", id)).status, 0n);
});

rule("a_settled_inline_deposit_cannot_be_withdrawn_again", async (w) => {
  await w.open({ depositor: w.depositor2 });
  const { id } = await proven(w, 100n);
  await w.ok(w.depositor, SESSION, "completeSessionJob", [id, ""]);
  await w.reverts("Insufficient balance", w.depositor, SESSION, "withdrawNative", [1n]);
  assert.equal(
    await w.read(SESSION, "getDepositBalance", w.depositor2, NATIVE), OPEN_DEFAULTS.deposit,
  );
});

rule("a_session_from_a_deposit_is_out_of_its_depositors_reach", async (w) => {
  const value = 10n ** 17n;
  await w.ok(w.depositor, SESSION, "depositNative", [], { value });
  const args = [w.host, NATIVE, value - 5n, PRICE, 86_400n, 100n];
  await w.ok(w.depositor, SESSION, "createSessionFromDeposit", args);
  await w.reverts("Insufficient balance", w.depositor, SESSION, "withdrawNative", [6n]);
  await w.ok(w.depositor, SESSION, "withdrawNative", [5n]);
  await w.ok(w.depositor, SESSION, "completeSessionJob", [1n, ""]);
  assert.equal(await w.balance(w.addresses.job_marketplace), 0n);
});

rule("hosts_withdraw_their_earnings_and_only_theirs", async (w) => {
  const { id } = await proven(w, 200n);
  await w.ok(w.depositor, SESSION, "completeSessionJob", [id, ""]);
  const earned = (200n * PRICE * (10_000n - FEE)) / 10_000n;
  const earnings = "host_earnings";
  await w.reverts("Insufficient earnings", w.stranger, earnings, "withdraw", [1n, NATIVE]);
  await w.reverts("Nothing to withdraw", w.stranger, earnings, "withdrawAll", [NATIVE]);
  await w.reverts("Insufficient earnings", w.host, earnings, "withdraw", [earned + 1n, NATIVE]);
  const part = await w.ok(w.host, earnings, "withdraw", [1n, NATIVE]);
  assert.deepEqual(w.events(earnings, part.logs), [
    ["EarningsWithdrawn(address,address,uint256,uint256)", w.host, NATIVE, 1n, earned - 1n],
  ]);
  await w.ok(w.host, earnings, "withdrawAll", [NATIVE]);
  assert.equal(await w.read(earnings, "getBalance", w.host, NATIVE), 0n);
  assert.equal(await w.balance(w.addresses.host_earnings), 0n);
});

rule("a_withdrawal_leaves_room_for_the_next_earnings", async (w) => {
  const earned = (100n * PRICE * (10_000n - FEE)) / 10_000n;
  for (let round = 0; round < 2; round += 1) {
    const { id } = await proven(w, 100n);
    await w.ok(w.depositor, SESSION, "completeSessionJob", [id, ""]);
    assert.equal(await w.read("host_earnings", "getBalance", w.host, NATIVE), earned);
    assert.equal(await w.read("host_earnings", "totalOwed", NATIVE), earned);
    await w.ok(w.host, "host_earnings", "withdrawAll", [NATIVE]);
  }
});

rule("earnings_are_credited_by_the_marketplace_alone_and_only_when_funded", async (w) => {
  const args = [w.stranger, 1n, NATIVE];
  await w.reverts("Not authorized", w.stranger, "host_earnings", "creditEarnings", args);
  await w.ok(w.deployer, "host_earnings", "setAuthorizedCaller", [w.stranger, true]);
  await w.reverts("Earnings not funded", w.stranger, "host_earnings", "creditEarnings", args);
});

rule("a_token_session_is_paid_in_that_token", async (w) => {
  const token = w.addresses.token;
  const min = DEFAULT_TERMS.tokenMinDeposit;
  await w.ok(w.depositor, "token", "mint", [w.depositor, 10n * min]);
  await w.ok(w.depositor, "token", "approve", [w.addresses.job_marketplace, 10n * min]);
  const open = (deposit, t = token) =>
    w.transact(w.depositor, SESSION, "createSessionJobWithToken",
      [w.host, t, deposit, 100n, 86_400n, 100n]);
  assert.equal((await open(min - 1n)).reason, "Insufficient deposit");
  assert.equal((await open(min, w.addresses.proof_system)).reason, "Token not accepted");
  assert.equal((await open(min, NATIVE)).reason, "Token not accepted");
  assert.ok((await open(min)).ok);
  assert.ok((await w.claim(1n, 150n, proofBytes(1), { at: w.clock + 10n })).ok);
  await w.ok(w.depositor, SESSION, "completeSessionJob", [1n, ""]);
  const fee = (15_000n * FEE) / 10_000n;
  assert.equal(await w.read("token", "balanceOf", w.depositor), 10n * min - 15_000n);
  assert.equal(await w.read("host_earnings", "getBalance", w.host, token), 15_000n - fee);
  assert.equal(await w.read(SESSION, "accumulatedTreasuryTokens", token), fee);
  await w.ok(w.host, "host_earnings", "withdrawAll", [token]);
  assert.equal(await w.read("token", "balanceOf", w.host), 15_000n - fee);
  await w.ok(w.treasury, SESSION, "withdrawTreasuryTokens", [token]);
  assert.equal(await w.read("token", "balanceOf", w.addresses.job_marketplace), 0n);
});

rule("a_wrong_selector_succeeds_and_does_nothing", async (w) => {
  const { id } = await w.open();
  // v7's submitProofOfWork: no such function here, and the payable fallback swallows it.
  const v7 = ethers.concat(["0x7c5cb561", ethers.zeroPadValue(ethers.toBeHex(id), 32)]);
  const result = await w.send(w.host, w.addresses.job_marketplace, v7, { value: 1n });
  assert.ok(result.ok);
  assert.equal(result.logs.length, 0);
  assert.equal((await w.read(SESSION, "sessionJobs", id)).tokensUsed, 0n);
});

rule("settlement_and_withdrawal_stay_near_the_gas_measured_on_v3", async (w) => {
  const { id } = await proven(w, 100n);
  const complete = await w.ok(w.depositor, SESSION, "completeSessionJob", [id, ""]);
  const withdraw = await w.ok(w.host, "host_earnings", "withdrawAll", [NATIVE]);
  console.log(`gas: complete ${complete.gas}, withdrawAll ${withdraw.gas}`);
  assert.ok(complete.gas <= 250_000n, `complete: ${complete.gas}`);
  assert.ok(withdraw.gas <= 60_000n, `withdrawAll: ${withdraw.gas}`);
});
