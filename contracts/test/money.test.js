// Dividing a deposit, docs/spec/contract.md section 3, in every version; v7's own rules about
// money stand in v7.test.js.
"use strict";

const assert = require("node:assert/strict");
const test = require("node:test");
const { ethers, DEFAULT_TERMS } = require("../chain.js");
const { NATIVE, TRAITS, VERSION_NAMES, WINDOW, proofBytes, versionTests } =
  require("./support.js");

const FEE = DEFAULT_TERMS.feeBasisPoints;
const SESSION = "job_marketplace";
const EARNINGS = "host_earnings";
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

/** What a payment leaves the host after the fee, which rounds down. */
const share = (payment) => payment - (payment * FEE) / 10_000n;

/** Gives the depositor units of a token, approved to the marketplace. */
async function funded(w, amount) {
  await w.ok(w.depositor, "token", "mint", [w.depositor, amount]);
  await w.ok(w.depositor, "token", "approve", [w.addresses.job_marketplace, amount]);
}

/** A contract of a test as one that `transact` knows. */
async function added(w, name, contract) {
  const { address, abi } = await w.deploy(contract);
  w.addresses[name] = address;
  w.abi[name] = abi;
  return address;
}

versionTests(test, VERSION_NAMES, (rule, name) => {
  rule("a_settlement_divides_the_deposit_into_fee_earnings_and_refund", async (w) => {
    // 101 tokens at an odd price: payment and fee round down, nothing is lost.
    const price = w.price + 7n;
    const deposit = w.cost(1000n, price) + 3n;
    const { id } = await proven(w, 101n, { price, deposit });
    const [payment, before] = [w.cost(101n, price), await w.balance(w.depositor)];
    const refund = deposit - payment;
    // The host completes, so that the depositor's balance moves by the refund alone.
    const result = await w.ok(w.host, SESSION, "completeSessionJob", [id, "cid-1"], {
      at: w.clock + WINDOW,
    });
    const both = ["v3", "v4", "v4-late"].includes(name);
    assert.deepEqual(w.events(SESSION, result.logs), [
      [COMPLETED, id, 101n, share(payment), refund],
      ...(both ? [[COMPLETED_BY, id, w.host, 101n, payment, refund]] : []),
    ]);
    assert.equal((await w.balance(w.depositor)) - before, refund);
    assert.equal(await w.read(EARNINGS, "getBalance", w.host, NATIVE), share(payment));
    assert.equal(await w.balance(w.addresses.host_earnings), share(payment));
    const fee = payment - share(payment);
    assert.equal(await w.read(SESSION, "accumulatedTreasuryNative"), fee);
    assert.equal(await w.balance(w.addresses.job_marketplace), fee);
    const s = await w.read(SESSION, "sessionJobs", id);
    assert.deepEqual(
      [s.status, s.withdrawnByHost, s.refundedToUser, s.conversationCID],
      [1n, share(payment), refund, "cid-1"],
    );
    assert.equal(await w.read(SESSION, "getDepositBalance", w.depositor, NATIVE), 0n);
    await w.reverts("Only treasury", w.stranger, SESSION, "withdrawTreasuryNative", []);
    await w.ok(w.treasury, SESSION, "withdrawTreasuryNative", []);
    assert.equal(await w.balance(w.addresses.job_marketplace), 0n);
  });

  rule("a_timeout_pays_the_proven_tokens", async (w) => {
    const { id, lastProof, deposit } = await proven(w, 100n);
    const at = lastProof + 301n;
    const result = await w.ok(w.stranger, SESSION, "triggerSessionTimeout", [id], { at });
    const earned = share(w.cost(100n));
    const refund = deposit - w.cost(100n);
    assert.deepEqual(w.events(SESSION, result.logs), [[TIMED_OUT, id, earned, refund]]);
    assert.equal(await w.read(EARNINGS, "getBalance", w.host, NATIVE), earned);
    const s = await w.read(SESSION, "sessionJobs", id);
    assert.deepEqual([s.status, s.withdrawnByHost, s.refundedToUser], [2n, earned, refund]);
  });

  rule("a_deposit_proven_to_the_last_token_leaves_nothing_to_refund", async (w) => {
    const { id, deposit } = await proven(w, 100n, { tokens: 100n });
    await w.ok(w.depositor, SESSION, "completeSessionJob", [id, ""]);
    const s = await w.read(SESSION, "sessionJobs", id);
    assert.deepEqual([s.withdrawnByHost, s.refundedToUser], [share(deposit), 0n]);
  });

  rule("a_token_session_is_paid_in_that_token", async (w) => {
    const { token } = w.addresses;
    const [deposit, price] = [800_000n, 101n * w.v.pricePrecision + w.v.pricePrecision / 2n];
    await funded(w, deposit);
    await w.open({ way: "token", deposit, price });
    assert.ok((await w.claim(1n, 151n, proofBytes(1), { at: w.clock + 10n })).ok);
    await w.ok(w.host, SESSION, "completeSessionJob", [1n, ""], { at: w.clock + WINDOW });
    const payment = w.cost(151n, price);
    assert.equal(await w.read("token", "balanceOf", w.depositor), deposit - payment);
    assert.equal(await w.read(EARNINGS, "getBalance", w.host, token), share(payment));
    assert.equal(await w.read(EARNINGS, "getBalance", w.host, NATIVE), 0n);
    const fee = payment - share(payment);
    assert.equal(await w.read(SESSION, "accumulatedTreasuryTokens", token), fee);
    await w.ok(w.host, EARNINGS, "withdrawAll", [token]);
    assert.equal(await w.read("token", "balanceOf", w.host), share(payment));
    await w.ok(w.treasury, SESSION, "withdrawTreasuryTokens", [token]);
    assert.equal(await w.read("token", "balanceOf", w.addresses.job_marketplace), 0n);
  });

  rule("a_frozen_depositor_of_a_token_session_holds_up_the_whole_settlement", async (w) => {
    const token = await added(w, "freezable", "FreezableToken");
    await w.ok(w.deployer, SESSION, "addAcceptedToken", [token, 1n]);
    if (w.v.modelBound) {
      const args = [w.opening().args[1], token, 1n];
      await w.ok(w.host, "node_registry", "setModelTokenPricing", args);
    }
    const deposit = 1_000_000n;
    await w.ok(w.depositor, "freezable", "mint", [w.depositor, deposit]);
    const approval = [w.addresses.job_marketplace, deposit];
    await w.ok(w.depositor, "freezable", "approve", approval);
    const { id } = await proven(w, 100n, { way: "token", token, deposit, price: 1000n });
    await w.ok(w.stranger, "freezable", "setFrozen", [w.depositor, true]);
    const end = [w.host, SESSION, "completeSessionJob", [id, ""]];
    await w.reverts("Token refund failed", ...end, { at: w.clock + WINDOW });
    assert.equal(await w.read(EARNINGS, "getBalance", w.host, token), 0n);
    await w.ok(w.stranger, "freezable", "setFrozen", [w.depositor, false]);
    await w.ok(...end);
    assert.equal(await w.read(EARNINGS, "getBalance", w.host, token), share(w.cost(100n, 1000n)));
  });

  rule("a_session_from_a_deposit_is_out_of_its_depositors_reach", async (w) => {
    const value = 10n ** 17n;
    await w.ok(w.depositor, SESSION, "depositNative", [], { value });
    await w.open({ way: "deposit", deposit: value - 5n });
    await w.reverts("Insufficient balance", w.depositor, SESSION, "withdrawNative", [6n]);
    await w.ok(w.depositor, SESSION, "withdrawNative", [5n]);
    await w.ok(w.host, SESSION, "completeSessionJob", [1n, ""], { at: w.clock + WINDOW });
    assert.equal(await w.balance(w.addresses.job_marketplace), 0n);
  });

  rule("a_settled_inline_deposit_cannot_be_withdrawn_again", async (w) => {
    const other = await w.open({ depositor: w.depositor2 });
    const { id } = await proven(w, 100n);
    await w.ok(w.depositor, SESSION, "completeSessionJob", [id, ""]);
    await w.reverts("Insufficient balance", w.depositor, SESSION, "withdrawNative", [1n]);
    const held = await w.read(SESSION, "getDepositBalance", w.depositor2, NATIVE);
    assert.equal(held, TRAITS[name].early ? other.deposit : 0n);
  });

  rule("hosts_withdraw_their_earnings_and_only_theirs", async (w) => {
    const { id } = await proven(w, 200n);
    await w.ok(w.depositor, SESSION, "completeSessionJob", [id, ""]);
    const earned = share(w.cost(200n));
    await w.reverts("Insufficient earnings", w.stranger, EARNINGS, "withdraw", [1n, NATIVE]);
    await w.reverts("Nothing to withdraw", w.stranger, EARNINGS, "withdrawAll", [NATIVE]);
    const tooMuch = [earned + 1n, NATIVE];
    await w.reverts("Insufficient earnings", w.host, EARNINGS, "withdraw", tooMuch);
    const part = await w.ok(w.host, EARNINGS, "withdraw", [1n, NATIVE]);
    assert.deepEqual(w.events(EARNINGS, part.logs), [
      ["EarningsWithdrawn(address,address,uint256,uint256)", w.host, NATIVE, 1n, earned - 1n],
    ]);
    await w.ok(w.host, EARNINGS, "withdrawAll", [NATIVE]);
    assert.equal(await w.read(EARNINGS, "getBalance", w.host, NATIVE), 0n);
    assert.equal(await w.balance(w.addresses.host_earnings), 0n);
  });

  rule("a_wrong_selector_succeeds_and_does_nothing", async (w) => {
    const { id } = await w.open();
    for (const selector of ["0xc8c664ee", "0xace083b3", "0x8dbe53aa", "0x3338f1e5", "0x7c5cb561"]) {
      const own = w.abi.job_marketplace.getFunction("submitProofOfWork").selector === selector;
      if (own) continue;
      // Another version's claim: no such function here, and the payable fallback swallows it.
      const data = ethers.concat([selector, ethers.zeroPadValue(ethers.toBeHex(id), 32)]);
      const result = await w.send(w.host, w.addresses.job_marketplace, data, { value: 1n });
      assert.ok(result.ok, selector);
      assert.equal(result.logs.length, 0);
    }
    assert.equal((await w.read(SESSION, "sessionJobs", id)).tokensUsed, 0n);
  });

  rule("settlement_and_withdrawal_stay_near_the_gas_measured_on_v3", async (w) => {
    const { id } = await proven(w, 100n);
    const complete = await w.ok(w.depositor, SESSION, "completeSessionJob", [id, ""]);
    const withdraw = await w.ok(w.host, EARNINGS, "withdrawAll", [NATIVE]);
    console.log(`gas, ${name}: complete ${complete.gas}, withdrawAll ${withdraw.gas}`);
    assert.ok(complete.gas <= 250_000n, `complete: ${complete.gas}`);
    assert.ok(withdraw.gas <= 60_000n, `withdrawAll: ${withdraw.gas}`);
  });
});

// Up to v6 a depositor that refuses its refund reverts the whole settlement; v7 credits it.
versionTests(test, VERSION_NAMES, (rule, name) => {
  rule("a_depositor_that_refuses_its_refund_reverts_the_settlement_or_is_credited", async (w) => {
    const refuser = await added(w, "refuser", "RefusingDepositor");
    const deposit = 10n ** 17n;
    const execute = (method, args, options) => {
      const data = w.abi.job_marketplace.encodeFunctionData(method, args);
      const call = [w.addresses.job_marketplace, data];
      return w.transact(w.depositor, "refuser", "execute", call, options);
    };
    const { method, args } = w.opening({ deposit });
    const opened = await execute(method, args, { value: deposit });
    assert.ok(opened.ok, opened.reason);
    // The second output is the depositor; v3a calls it the requester.
    assert.equal((await w.read(SESSION, "sessionJobs", 1n))[1], refuser);
    const claim = await w.claim(1n, 100n, proofBytes(1), { at: w.clock + 5n });
    assert.ok(claim.ok, claim.reason);
    const refund = deposit - w.cost(100n);
    const settled = async () => {
      const s = await w.read(SESSION, "sessionJobs", 1n);
      assert.deepEqual([s.status, s.refundedToUser], [1n, refund]);
      const earned = await w.read(EARNINGS, "getBalance", w.host, NATIVE);
      assert.equal(earned, share(w.cost(100n)));
    };

    if (name === "v7") {
      const credited = await w.ok(w.host, SESSION, "completeSessionJob", [1n, ""], {
        at: w.clock + WINDOW,
      });
      assert.deepEqual(w.events(SESSION, credited.logs)[0],
        ["RefundCredited(uint256,address,uint256)", 1n, refuser, refund]);
      await settled();
      assert.equal(await w.read(SESSION, "getDepositBalance", refuser, NATIVE), refund);
      assert.equal((await execute("withdrawNative", [refund])).reason, "ETH transfer failed");
      await w.ok(w.depositor, "refuser", "setAccepts", [true]);
      assert.ok((await execute("withdrawNative", [refund])).ok);
      assert.equal(await w.balance(refuser), refund);
      return;
    }
    const refused = await execute("completeSessionJob", [1n, ""]);
    assert.equal(refused.reason, "ETH refund failed");
    const late = { at: w.clock + 1000n };
    await w.reverts("ETH refund failed", w.host, SESSION, "completeSessionJob", [1n, ""], late);
    await w.reverts("ETH refund failed", w.host, SESSION, "triggerSessionTimeout", [1n]);
    assert.equal((await w.read(SESSION, "sessionJobs", 1n)).status, 0n);
    assert.equal(await w.read(EARNINGS, "getBalance", w.host, NATIVE), 0n);

    await w.ok(w.depositor, "refuser", "setAccepts", [true]);
    await w.ok(w.host, SESSION, "completeSessionJob", [1n, ""]);
    await settled();
    assert.equal(await w.balance(refuser), refund);
  });

  rule("an_inline_deposit_can_be_withdrawn_in_mid_session_before_v5", async (w) => {
    const { early } = TRAITS[name];
    const { id, deposit } = await proven(w, 100n);
    const withdraw = (amount) => w.transact(w.depositor, SESSION, "withdrawNative", [amount]);
    assert.equal((await withdraw(deposit + 1n)).reason, "Insufficient balance");
    const all = await withdraw(deposit);
    assert.equal(all.reason, early ? undefined : "Insufficient balance");
    assert.equal(await w.balance(w.addresses.job_marketplace), early ? 0n : deposit);
    assert.equal((await w.read(SESSION, "sessionJobs", id)).deposit, deposit);
    const end = await w.transact(w.host, SESSION, "completeSessionJob", [id, ""], {
      at: w.clock + 1000n,
    });
    assert.equal(end.reason, early ? "Transfer to HostEarnings failed" : undefined);
    assert.equal((await w.read(SESSION, "sessionJobs", id)).status, early ? 0n : 1n);
  });

  rule("an_inline_token_deposit_can_be_withdrawn_in_mid_session_before_v5", async (w) => {
    const { early } = TRAITS[name];
    await funded(w, 1_000_000n);
    const price = 1000n;
    const { id } = await proven(w, 100n, { way: "token", deposit: 1_000_000n, price });
    const { token } = w.addresses;
    const args = [token, 1_000_000n];
    const all = await w.transact(w.depositor, SESSION, "withdrawToken", args);
    assert.equal(all.reason, early ? undefined : "Insufficient balance");
    const end = await w.transact(w.host, SESSION, "completeSessionJob", [id, ""], {
      at: w.clock + 1000n,
    });
    assert.equal(end.reason, early ? "Transfer to HostEarnings failed" : undefined);
  });
});

versionTests(test, ["v3"], (rule) => {
  rule("a_withdrawal_leaves_room_for_the_next_earnings", async (w) => {
    const earned = share(w.cost(100n));
    for (let round = 0; round < 2; round += 1) {
      const { id } = await proven(w, 100n);
      await w.ok(w.depositor, SESSION, "completeSessionJob", [id, ""]);
      assert.equal(await w.read(EARNINGS, "getBalance", w.host, NATIVE), earned);
      assert.equal(await w.read(EARNINGS, "totalOwed", NATIVE), earned);
      await w.ok(w.host, EARNINGS, "withdrawAll", [NATIVE]);
    }
  });

  rule("earnings_are_credited_by_the_marketplace_alone_and_only_when_funded", async (w) => {
    const args = [w.stranger, 1n, NATIVE];
    await w.reverts("Not authorized", w.stranger, EARNINGS, "creditEarnings", args);
    await w.ok(w.deployer, EARNINGS, "setAuthorizedCaller", [w.stranger, true]);
    await w.reverts("Earnings not funded", w.stranger, EARNINGS, "creditEarnings", args);
  });
});
