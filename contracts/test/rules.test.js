// The rules of submitProofOfWork, docs/spec/contract.md section 2, each at -1, 0 and +1.
"use strict";

const assert = require("node:assert/strict");
const test = require("node:test");
const { ethers } = require("../chain.js");
const { proofBytes, worldTests } = require("./support.js");

const rule = worldTests(test);
const RATE = 20n;

rule("an_exact_rate_passes_and_one_token_more_reverts", async (w) => {
  const table = [
    { elapsed: 5n, tokens: 100n, reason: undefined },
    { elapsed: 5n, tokens: 101n, reason: "Excessive tokens claimed" },
    { elapsed: 4n, tokens: 100n, reason: "Excessive tokens claimed" },
    { elapsed: 50n, tokens: 999n, reason: undefined },
    { elapsed: 50n, tokens: 1000n, reason: undefined },
    { elapsed: 50n, tokens: 1001n, reason: "Excessive tokens claimed" },
  ];
  for (const { elapsed, tokens, reason } of table) {
    await w.isolated(async () => {
      const { id, start } = await w.open();
      const result = await w.claim(id, tokens, proofBytes(1), { at: start + elapsed });
      assert.equal(result.reason, reason, `${tokens} tokens after ${elapsed} s`);
    });
  }
});

rule("unused_allowance_is_lost_with_each_proof", async (w) => {
  const { id, start } = await w.open();
  const first = await w.claim(id, 100n, proofBytes(1), { at: start + 100n });
  assert.ok(first.ok, first.reason);
  const session = await w.read("job_marketplace", "sessionJobs", id);
  assert.equal(session.lastProofTime, start + 100n);
  const greedy = await w.claim(id, 5n * RATE + 1n, proofBytes(2), { at: start + 105n });
  assert.equal(greedy.reason, "Excessive tokens claimed");
  const exact = await w.claim(id, 6n * RATE, proofBytes(2), { at: start + 106n });
  assert.ok(exact.ok, exact.reason);
});

rule("a_claim_holds_at_least_100_tokens", async (w) => {
  const { id, start } = await w.open();
  for (const [tokens, reason] of [
    [0n, "Must claim minimum tokens"],
    [99n, "Must claim minimum tokens"],
    [100n, undefined],
  ]) {
    const result = await w.claim(id, tokens, proofBytes(1), { at: w.clock + 10n });
    assert.equal(result.reason, reason, `${tokens} tokens`);
  }
  await w.isolated(async () => {
    const result = await w.claim(id, 101n, proofBytes(2), { at: start + 100n });
    assert.ok(result.ok, result.reason);
  });
});

rule("a_deposit_is_spent_to_the_last_token_and_an_excess_loses_the_whole_claim", async (w) => {
  // 1,000 tokens and a half: the division rounds down.
  const price = 10n ** 14n;
  const { id, start } = await w.open({ price, deposit: 1000n * price + price / 2n });
  const whole = await w.claim(id, 1001n, proofBytes(1), { at: start + 100n });
  assert.equal(whole.reason, "Exceeds deposit");
  assert.ok((await w.claim(id, 600n, proofBytes(2), { at: start + 200n })).ok);
  const over = await w.claim(id, 401n, proofBytes(3), { at: start + 300n });
  assert.equal(over.reason, "Exceeds deposit");
  assert.equal((await w.read("job_marketplace", "sessionJobs", id)).tokensUsed, 600n);
  const under = await w.claim(id, 399n, proofBytes(4), { at: start + 300n + 1n });
  assert.ok(under.ok, under.reason);
  // One token is left, and a tail under 100 can never be paid.
  assert.equal(
    (await w.claim(id, 100n, proofBytes(5), { at: start + 400n })).reason,
    "Exceeds deposit",
  );
});

rule("a_claim_of_exactly_the_rest_passes", async (w) => {
  const price = 10n ** 14n;
  const { id, start } = await w.open({ price, deposit: 1000n * price });
  assert.ok((await w.claim(id, 600n, proofBytes(1), { at: start + 100n })).ok);
  assert.ok((await w.claim(id, 400n, proofBytes(2), { at: start + 200n })).ok);
});

rule("only_the_sessions_host_submits", async (w) => {
  const { id, start } = await w.open();
  for (const from of [w.stranger, w.depositor, w.host2]) {
    await w.reverts(
      "Only host can submit proof", from, "job_marketplace", "submitProofOfWork",
      [id, 100n, proofBytes(1)], { at: w.clock + 10n },
    );
  }
  assert.ok((await w.claim(id, 100n, proofBytes(1), { at: start + 100n })).ok);
});

rule("an_unknown_job_reads_as_zeros_and_fails_on_the_host", async (w) => {
  for (const id of [0n, 1n, 77n]) {
    const result = await w.claim(id, 100n, proofBytes(1));
    assert.equal(result.reason, "Only host can submit proof");
    const session = await w.read("job_marketplace", "sessionJobs", id);
    assert.equal(session.host, ethers.ZeroAddress);
    assert.equal(session.status, 0n);
  }
});

rule("an_ended_session_takes_no_proof", async (w) => {
  const completed = await w.open();
  await w.ok(w.depositor, "job_marketplace", "completeSessionJob", [completed.id, "cid"]);
  const first = await w.claim(completed.id, 100n, proofBytes(1), { at: w.clock + 10n });
  assert.equal(first.reason, "Session not active");
  const timedOut = await w.open({ maxDuration: 10n });
  await w.ok(w.stranger, "job_marketplace", "triggerSessionTimeout", [timedOut.id], {
    at: timedOut.start + 11n,
  });
  const second = await w.claim(timedOut.id, 100n, proofBytes(2), { at: w.clock + 10n });
  assert.equal(second.reason, "Session not active");
});

rule("the_same_proof_is_refused_within_the_session", async (w) => {
  const { id } = await w.open();
  assert.ok((await w.claim(id, 100n, proofBytes(1), { at: w.clock + 5n })).ok);
  const again = await w.claim(id, 100n, proofBytes(1), { at: w.clock + 5n });
  assert.equal(again.reason, "Proof already submitted");
});

rule("a_first_word_is_single_use_in_all_sessions", async (w) => {
  const [one, two] = [await w.open(), await w.open()];
  assert.ok((await w.claim(one.id, 100n, proofBytes(1), { at: w.clock + 5n })).ok);
  const sameBytes = await w.claim(two.id, 100n, proofBytes(1), { at: w.clock + 5n });
  assert.equal(sameBytes.reason, "Invalid proof");
  const otherTail = await w.claim(one.id, 100n, proofBytes(1, 146), { at: w.clock + 5n });
  assert.equal(otherTail.reason, "Invalid proof");
});

rule("a_proof_has_at_least_64_bytes", async (w) => {
  const { id } = await w.open();
  for (const [n, length, reason] of [
    [1, 63, "Invalid proof"],
    [2, 64, undefined],
    [3, 65, undefined],
    [4, 32, "Invalid proof"],
  ]) {
    const result = await w.claim(id, 100n, proofBytes(n, length), { at: w.clock + 5n });
    assert.equal(result.reason, reason, `${length} bytes`);
  }
  const empty = await w.claim(id, 100n, "0x", { at: w.clock + 5n });
  assert.equal(empty.reason, "Invalid proof");
});

rule("a_stranger_can_burn_a_first_word_and_a_new_word_is_the_remedy", async (w) => {
  const { id } = await w.open();
  const burn = [
    ["recordVerifiedProof", [ethers.dataSlice(proofBytes(1), 0, 32)]],
    ["verifyAndMarkComplete", [proofBytes(2), w.stranger, 1n]],
  ];
  for (const [index, [method, args]] of burn.entries()) {
    const word = ethers.dataSlice(proofBytes(index + 1), 0, 32);
    await w.ok(w.stranger, "proof_system", method, args);
    assert.equal(await w.read("proof_system", "verifiedProofs", word), true);
    const burnt = await w.claim(id, 100n, proofBytes(index + 1), { at: w.clock + 5n });
    assert.equal(burnt.reason, "Invalid proof");
    const renewed = ethers.concat([
      ethers.keccak256(word),
      ethers.dataSlice(proofBytes(index + 1), 32),
    ]);
    assert.ok((await w.claim(id, 100n, renewed, { at: w.clock + 5n })).ok);
  }
});

rule("the_rules_are_tested_in_the_order_of_the_page", async (w) => {
  // Each claim breaks its own rule and all later ones; the earliest names the revert.
  const price = 10n ** 14n;
  const { id, start } = await w.open({ price, deposit: 200n * price });
  assert.ok((await w.claim(id, 100n, proofBytes(1), { at: start + 5n })).ok);
  const over = [id, 101n, proofBytes(1)];
  const table = [
    [w.stranger, [id, 99n, "0x"], 1n, "Only host can submit proof"],
    [w.host, [id, 99n, "0x"], 1n, "Must claim minimum tokens"],
    [w.host, [id, 101n, proofBytes(1)], 2n, "Excessive tokens claimed"],
    [w.host, over, 20n, "Exceeds deposit"],
    [w.host, [id, 100n, proofBytes(1)], 30n, "Proof already submitted"],
    [w.host, [id, 100n, proofBytes(1, 63)], 40n, "Invalid proof"],
  ];
  for (const [from, args, after, reason] of table) {
    await w.reverts(reason, from, "job_marketplace", "submitProofOfWork", args, {
      at: start + 5n + after,
    });
  }
  await w.ok(w.depositor, "job_marketplace", "completeSessionJob", [id, ""]);
  await w.reverts(
    "Session not active", w.stranger, "job_marketplace", "submitProofOfWork", [id, 0n, "0x"],
  );
});

rule("a_claim_is_a_delta_and_is_announced", async (w) => {
  const { id } = await w.open();
  for (const [n, tokens, total] of [[1, 100n, 100n], [2, 150n, 250n]]) {
    const result = await w.claim(id, tokens, proofBytes(n), { at: w.clock + 10n });
    assert.deepEqual(w.events("job_marketplace", result.logs), [
      ["ProofSubmitted(uint256,address,uint256,bytes32)", id, w.host, tokens,
        ethers.keccak256(proofBytes(n))],
    ]);
    assert.equal((await w.read("job_marketplace", "sessionJobs", id)).tokensUsed, total);
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
  console.log(`gas: first proof ${first.gas}, second ${second.gas}`);
  assert.ok(first.gas <= 184_000n, `first proof: ${first.gas}`);
  assert.ok(second.gas <= 152_000n, `second proof: ${second.gas}`);
});
