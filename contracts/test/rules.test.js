// The rules of submitProofOfWork that all versions share, docs/spec/contract.md section 2, each at
// -1, 0 and +1. What is new about a proof (rules 4, 7 and 8) stands in proofs.test.js.
"use strict";

const assert = require("node:assert/strict");
const test = require("node:test");
const { ethers } = require("../chain.js");
const { TRAITS, VERSION_NAMES, proofBytes, versionTests } = require("./support.js");

const SESSION = "job_marketplace";
const EXCESS = "Excessive tokens claimed";

versionTests(test, VERSION_NAMES, (rule, name) => {
  const { rate, notHost, claim } = TRAITS[name];
  const hashed = claim !== "bytes";

  rule("an_exact_rate_passes_and_one_token_more_reverts", async (w) => {
    const table = [
      { elapsed: 5n, tokens: 5n * rate - 1n, reason: rate === 20n ? "minimum" : undefined },
      { elapsed: 5n, tokens: 5n * rate, reason: undefined },
      { elapsed: 5n, tokens: 5n * rate + 1n, reason: EXCESS },
      { elapsed: 50n, tokens: 50n * rate - 1n, reason: undefined },
      { elapsed: 50n, tokens: 50n * rate, reason: undefined },
      { elapsed: 50n, tokens: 50n * rate + 1n, reason: EXCESS },
      // No time, no allowance: the whole rate is one second's.
      { elapsed: 1n, tokens: rate + 100n, reason: EXCESS },
    ];
    for (const { elapsed, tokens, reason } of table) {
      await w.isolated(async () => {
        const { id, start } = await w.open({ tokens: 1_000_000n });
        const result = await w.claim(id, tokens, proofBytes(1), { at: start + elapsed });
        const wanted = reason === "minimum" ? "Must claim minimum tokens" : reason;
        assert.equal(result.reason, wanted, `${tokens} tokens after ${elapsed} s`);
      });
    }
  });

  rule("unused_allowance_is_lost_with_each_proof", async (w) => {
    const { id, start } = await w.open({ tokens: 1_000_000n });
    const first = await w.claim(id, 100n, proofBytes(1), { at: start + 100n });
    assert.ok(first.ok, first.reason);
    const session = await w.read(SESSION, "sessionJobs", id);
    assert.equal(session.lastProofTime, start + 100n);
    const greedy = await w.claim(id, 5n * rate + 1n, proofBytes(2), { at: start + 105n });
    assert.equal(greedy.reason, EXCESS);
    const exact = await w.claim(id, 6n * rate, proofBytes(2), { at: start + 106n });
    assert.ok(exact.ok, exact.reason);
  });

  rule("a_claim_holds_at_least_100_tokens", async (w) => {
    const { id } = await w.open();
    assert.equal(await w.read(SESSION, "MIN_PROVEN_TOKENS"), 100n);
    for (const [n, tokens, reason] of [
      [1, 0n, "Must claim minimum tokens"],
      [1, 99n, "Must claim minimum tokens"],
      [1, 100n, undefined],
      [2, 101n, undefined],
    ]) {
      const result = await w.claim(id, tokens, proofBytes(n), { at: w.clock + 10n });
      assert.equal(result.reason, reason, `${tokens} tokens`);
    }
  });

  rule("a_deposit_is_spent_to_the_last_token_and_an_excess_loses_the_whole_claim", async (w) => {
    // 1,000 tokens and a half: the division rounds down.
    const { id, start } = await w.open({ deposit: w.cost(1000n) + w.cost(1n) / 2n });
    const whole = await w.claim(id, 1001n, proofBytes(1), { at: start + 100n });
    assert.equal(whole.reason, "Exceeds deposit");
    assert.ok((await w.claim(id, 600n, proofBytes(2), { at: start + 200n })).ok);
    const over = await w.claim(id, 401n, proofBytes(3), { at: start + 300n });
    assert.equal(over.reason, "Exceeds deposit");
    assert.equal((await w.read(SESSION, "sessionJobs", id)).tokensUsed, 600n);
    const under = await w.claim(id, 399n, proofBytes(4), { at: start + 300n + 1n });
    assert.ok(under.ok, under.reason);
    // One token is left, and a tail under 100 can never be paid.
    const tail = await w.claim(id, 100n, proofBytes(5), { at: start + 400n });
    assert.equal(tail.reason, "Exceeds deposit");
  });

  rule("a_claim_of_exactly_the_rest_passes", async (w) => {
    const { id, start } = await w.open({ tokens: 1000n });
    assert.ok((await w.claim(id, 600n, proofBytes(1), { at: start + 100n })).ok);
    assert.ok((await w.claim(id, 400n, proofBytes(2), { at: start + 200n })).ok);
  });

  rule("a_price_that_divides_nothing_evenly_still_rounds_down", async (w) => {
    // deposit × unit / price = 333.33…; in thousandths the price is a third of a unit's part.
    const deposit = 10n ** 15n;
    const price = (deposit * w.v.pricePrecision) / 333n - 1n;
    const affordable = (deposit * w.v.pricePrecision) / price;
    const { id, start } = await w.open({ deposit, price });
    const over = await w.claim(id, affordable + 1n, proofBytes(1), { at: start + 100n });
    assert.equal(over.reason, "Exceeds deposit");
    const exact = await w.claim(id, affordable, proofBytes(1), { at: start + 100n });
    assert.ok(exact.ok, exact.reason);
    await w.ok(w.depositor, SESSION, "completeSessionJob", [id, ""]);
    const job = await w.read(SESSION, "sessionJobs", id);
    assert.equal(job.refundedToUser, deposit - (affordable * price) / w.v.pricePrecision);
  });

  rule("only_the_sessions_host_submits", async (w) => {
    const { id, start } = await w.open();
    for (const by of ["stranger", "depositor", "host2"]) {
      const result = await w.claim(id, 100n, proofBytes(1), { by, at: w.clock + 10n });
      assert.equal(result.reason, notHost, by);
    }
    assert.ok((await w.claim(id, 100n, proofBytes(1), { at: start + 100n })).ok);
  });

  rule("an_unknown_job_reads_as_zeros_and_fails_on_the_host", async (w) => {
    for (const id of [0n, 1n, 77n]) {
      const result = await w.claim(id, 100n, proofBytes(1));
      assert.equal(result.reason, notHost);
      const session = await w.read(SESSION, "sessionJobs", id);
      for (const [index, value] of session.toArray().entries()) {
        const zeros = [0n, "", ethers.ZeroAddress, ethers.ZeroHash];
        assert.ok(zeros.includes(value), `output ${index}: ${value}`);
      }
      // The length alone tells v3a from v3, which have the same selectors.
      const data = w.abi.job_marketplace.encodeFunctionData("sessionJobs", [id]);
      const raw = await w.rpc("eth_call", { to: w.addresses.job_marketplace, data }, "latest");
      assert.equal(ethers.dataLength(raw), UNKNOWN_BYTES[name]);
    }
  });

  rule("an_ended_session_takes_no_proof", async (w) => {
    const completed = await w.open();
    await w.ok(w.depositor, SESSION, "completeSessionJob", [completed.id, "cid"]);
    const first = await w.claim(completed.id, 100n, proofBytes(1), { at: w.clock + 10n });
    assert.equal(first.reason, "Session not active");
    const timedOut = await w.open({ maxDuration: 10n });
    await w.ok(w.stranger, SESSION, "triggerSessionTimeout", [timedOut.id], {
      at: timedOut.start + 11n,
    });
    const second = await w.claim(timedOut.id, 100n, proofBytes(2), { at: w.clock + 10n });
    assert.equal(second.reason, "Session not active");
  });

  rule("the_rules_are_tested_in_the_order_of_the_page", async (w) => {
    // Each claim breaks its own rule and all later ones; the earliest names the revert.
    const { id, start } = await w.open({ tokens: 3n * rate + 200n });
    assert.ok((await w.claim(id, 100n, proofBytes(1), { at: start + 5n })).ok);
    const unsigned = { signature: "0x" };
    const table = [
      ["stranger", 99n, 1n, unsigned, notHost],
      ["host", 99n, 1n, unsigned, "Must claim minimum tokens"],
      ...(claim.startsWith("signed")
        ? [["host", 2n * rate + 1n, 2n, unsigned, "Invalid signature length"]]
        : []),
      ["host", 9n * rate + 101n, 3n, {}, EXCESS],
      ["host", 3n * rate + 101n, 40n, {}, "Exceeds deposit"],
      ["host", 100n, 50n, {}, USED[claim]],
    ];
    for (const [by, tokens, after, options, reason] of table) {
      const at = start + 5n + after;
      const result = await w.claim(id, tokens, proofBytes(1), { by, at, ...options });
      assert.equal(result.reason, reason, `${by} ${tokens} after ${after}`);
    }
    await w.ok(w.depositor, SESSION, "completeSessionJob", [id, ""]);
    const ended = await w.claim(id, 0n, proofBytes(1), { by: "stranger", ...unsigned });
    assert.equal(ended.reason, "Session not active");
  });

  rule("a_claim_is_a_delta_and_is_announced", async (w) => {
    const { id } = await w.open();
    for (const [n, tokens, total] of [[1, 100n, 100n], [2, 150n, 250n]]) {
      const result = await w.claim(id, tokens, proofBytes(n), { at: w.clock + 10n });
      const word = ethers.dataSlice(proofBytes(n), 0, 32);
      const documents = { hash: ["proof-cid"], signed: ["proof-cid"] }[claim]
        ?? (hashed ? ["proof-cid", "delta-cid"] : []);
      const types = ["uint256", "address", "uint256", "bytes32", ...documents.map(() => "string")];
      assert.deepEqual(w.events(SESSION, result.logs), [
        [`ProofSubmitted(${types.join(",")})`, id, w.host, tokens,
          hashed ? word : ethers.keccak256(proofBytes(n)), ...documents],
      ]);
      const job = await w.read(SESSION, "sessionJobs", id);
      assert.equal(job.tokensUsed, total);
      if (hashed) assert.deepEqual([job.lastProofHash, job.lastProofCID], [word, "proof-cid"]);
    }
  });

  rule("proofs_are_accepted_past_max_duration_until_somebody_triggers_the_timeout", async (w) => {
    const { id, start } = await w.open({ maxDuration: 10n });
    assert.ok((await w.claim(id, 100n, proofBytes(1), { at: start + 1000n })).ok);
  });

  rule("a_proof_costs_no_more_gas_than_measured_on_v3", async (w) => {
    const { id } = await w.open();
    const first = await w.claim(id, 100n, proofBytes(1), { at: w.clock + 5n });
    const second = await w.claim(id, 100n, proofBytes(2), { at: w.clock + 5n });
    console.log(`gas, ${name}: first proof ${first.gas}, second ${second.gas}`);
    assert.ok(first.gas <= 184_000n, `first proof: ${first.gas}`);
    assert.ok(second.gas <= 152_000n, `second proof: ${second.gas}`);
  });
});

/** Bytes that `sessionJobs` of an unknown job returns. */
const UNKNOWN_BYTES = {
  v3a: 512, vouchers: 512, v3: 544, v4: 640, "v4-late": 640, v5: 608, v6: 608, v7: 640,
};

/** What refuses proofBytes(1) a second time; v4 accepts it. */
const USED = {
  bytes: "Proof already submitted",
  hash: undefined,
  signed: "Proof already used",
  "signed+delta": "Proof already used",
  "hash+delta": `ProofAlreadyUsed(${ethers.dataSlice(proofBytes(1), 0, 32)})`,
};
