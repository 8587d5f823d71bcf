// Opening sessions, docs/spec/contract.md sections 1 and 3, in every version.
"use strict";

const assert = require("node:assert/strict");
const test = require("node:test");
const { DEFAULT_TERMS } = require("../chain.js");
const { MODEL, NATIVE, TRAITS, VERSION_NAMES, versionTests } = require("./support.js");

const SESSION = "job_marketplace";
const CREATED = "SessionJobCreated(uint256,address,address,uint256)";
const FROM_DEPOSIT = "SessionCreatedByDepositor(uint256,address,address,uint256)";
const TOKENS = 10n ** 12n; // units of the ERC-20 that a test's depositor has

/** Gives a depositor approved units of the accepted token. */
async function funded(w, depositor = w.depositor) {
  await w.ok(depositor, "token", "mint", [depositor, TOKENS]);
  await w.ok(depositor, "token", "approve", [w.addresses.job_marketplace, TOKENS]);
}

versionTests(test, VERSION_NAMES, (rule, name) => {
  const { early } = TRAITS[name];

  rule("a_session_is_recorded_as_it_was_opened", async (w) => {
    const { id, start, deposit } = await w.open();
    assert.equal(id, 1n);
    const common = {
      id: 1n, depositor: w.depositor, requester: w.depositor, host: w.host, paymentToken: NATIVE,
      deposit, pricePerToken: w.price, tokensUsed: 0n, maxDuration: 86_400n, startTime: start,
      lastProofTime: start, proofInterval: 100n, proofTimeoutWindow: 300n, status: 0n,
      withdrawnByHost: 0n, refundedToUser: 0n, conversationCID: "",
      lastProofHash: `0x${"0".repeat(64)}`, lastProofCID: "",
    };
    const session = await w.read(SESSION, "sessionJobs", id);
    for (const [field, value] of Object.entries(session.toObject())) {
      assert.equal(value, common[field], field);
    }
    const second = await w.open();
    assert.equal(second.id, 2n);
    assert.equal(await w.read(SESSION, "nextJobId"), 3n);
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
      [{ deposit: w.cost(100n) - 1n }, "Deposit below interval"],
      [{ deposit: w.cost(100n) }, undefined],
      [{ deposit: w.cost(100n) + 1n }, undefined],
      [{ price: 0n, deposit: min }, "Invalid price"],
      [{ maxDuration: 0n }, "Invalid duration"],
      [{ maxDuration: 1n }, undefined],
      [{ maxDuration: year }, undefined],
      [{ maxDuration: year + 1n }, "Invalid duration"],
      [{ host: NATIVE }, "Invalid host"],
      // Before v5 nobody asks whether the host is registered.
      [{ host: w.stranger }, early ? undefined : "Host not registered"],
    ];
    assert.equal(await w.read(SESSION, "MIN_DEPOSIT"), min);
    for (const [terms, reason] of table) {
      const result = await w.tryOpen(terms);
      assert.equal(result.reason, reason, Object.keys(terms).join());
    }
  });

  rule("the_three_ways_to_open_announce_themselves", async (w) => {
    const value = 10n ** 17n;
    const inline = await w.open({ deposit: value });
    assert.deepEqual(w.events(SESSION, inline.logs), [[CREATED, 1n, w.depositor, w.host, value]]);

    await funded(w);
    const token = await w.open({ way: "token", deposit: 1_000_000n, price: 10n });
    assert.deepEqual(
      w.events(SESSION, token.logs), [[CREATED, 2n, w.depositor, w.host, 1_000_000n]],
    );

    await w.ok(w.depositor2, SESSION, "depositNative", [], { value });
    const terms = { way: "deposit", depositor: w.depositor2, deposit: value };
    const from = await w.open(terms);
    assert.deepEqual(
      w.events(SESSION, from.logs), [[FROM_DEPOSIT, 3n, w.depositor2, w.host, value]],
    );
    assert.equal(await w.read(SESSION, "getDepositBalance", w.depositor2, NATIVE), 0n);
    assert.equal((await w.tryOpen(terms)).reason, "Insufficient balance");
  });

  rule("a_token_session_has_the_minimum_of_its_token", async (w) => {
    await funded(w);
    const min = DEFAULT_TERMS.tokenMinDeposit;
    const unknown = w.addresses.proof_system;
    for (const [terms, reason] of [
      [{ deposit: min - 1n }, "Insufficient deposit"],
      [{ deposit: min }, undefined],
      [{ deposit: min + 1n }, undefined],
      [{ deposit: min, token: unknown }, "Token not accepted"],
      [{ deposit: min, token: NATIVE }, "Token not accepted"],
      [{ deposit: TOKENS }, "Token transfer failed"], // some of it was spent above
    ]) {
      const result = await w.tryOpen({ way: "token", price: 10n, ...terms });
      assert.equal(result.reason, reason, Object.keys(terms).join());
    }
    const session = await w.read(SESSION, "sessionJobs", 1n);
    assert.equal(session.paymentToken, w.addresses.token);
  });

  rule("a_session_of_the_token_can_come_from_a_deposit_too", async (w) => {
    await funded(w);
    const { token } = w.addresses;
    await w.ok(w.depositor, SESSION, "depositToken", [token, 2_000_000n]);
    const terms = { way: "deposit", token, deposit: 1_500_000n, price: 10n };
    await w.open(terms);
    assert.equal(await w.read(SESSION, "getDepositBalance", w.depositor, token), 500_000n);
    assert.equal((await w.tryOpen(terms)).reason, "Insufficient balance");
  });
});

// v5 and v6: the registry's lowest prices hold. (v7 has one for each model: v7.test.js.)
versionTests(test, ["v5", "v6"], (rule) => {
  rule("a_price_below_the_hosts_minimum_opens_nothing", async (w) => {
    await funded(w);
    await w.ok(w.host2, "node_registry", "unregisterNode", []);
    await w.ok(w.host2, "token", "approve", [w.addresses.node_registry, 10n ** 21n]);
    const prices = [5000n, 300n];
    const args = ["{}", "http://h", [MODEL], ...prices];
    await w.ok(w.host2, "node_registry", "registerNode", args);
    const below = "Price below host minimum";
    for (const [way, min] of [["native", prices[0]], ["token", prices[1]]]) {
      for (const [price, reason] of [[min - 1n, below], [min, undefined], [min + 1n, undefined]]) {
        const deposit = way === "native" ? 10n ** 15n : 10n ** 6n;
        const result = await w.tryOpen({ way, price, deposit, host: w.host2 });
        assert.equal(result.reason, reason, `${way} at ${price}`);
      }
    }
  });

  rule("a_host_that_left_gets_no_session_and_keeps_its_open_ones", async (w) => {
    const { id } = await w.open();
    await w.ok(w.host, "node_registry", "unregisterNode", []);
    assert.equal((await w.tryOpen()).reason, "Host not registered");
    const claim = await w.claim(id, 100n, `0x${"11".repeat(64)}`, { at: w.clock + 5n });
    assert.ok(claim.ok, claim.reason);
  });
});
