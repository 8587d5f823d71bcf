// What makes a proof new and whose it is, docs/spec/contract.md section 2, rules 4, 7 and 8: the
// rules in which the versions differ most.
"use strict";

const assert = require("node:assert/strict");
const test = require("node:test");
const { ethers } = require("../chain.js");
const { TRAITS, VERSION_NAMES, proofBytes, signClaim, versionTests } = require("./support.js");

const claims = (shape) => VERSION_NAMES.filter((name) => TRAITS[name].claim.startsWith(shape));
const word = (proof) => ethers.dataSlice(proof, 0, 32);
/** Why a taken first word, or proof hash, is refused. */
const taken = (name, proof) => ({
  bytes: "Invalid proof",
  signed: "Proof already used",
  "signed+delta": "Proof already used",
  "hash+delta": `ProofAlreadyUsed(${word(proof)})`,
})[TRAITS[name].claim];

// Rules 7 and 8 of v3a and v3.
versionTests(test, claims("bytes"), (rule) => {
  rule("the_same_proof_is_refused_within_the_session", async (w) => {
    const { id } = await w.open();
    assert.ok((await w.claim(id, 100n, proofBytes(1), { at: w.clock + 5n })).ok);
    const again = await w.claim(id, 100n, proofBytes(1), { at: w.clock + 5n });
    assert.equal(again.reason, "Proof already submitted");
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

  rule("a_seen_proof_is_named_before_an_invalid_one", async (w) => {
    // Both rules are broken: the same bytes, and their first word is taken.
    const { id, start } = await w.open();
    assert.ok((await w.claim(id, 100n, proofBytes(1), { at: start + 5n })).ok);
    const both = await w.claim(id, 100n, proofBytes(1), { at: start + 30n });
    assert.equal(both.reason, "Proof already submitted");
    const short = await w.claim(id, 100n, proofBytes(1, 63), { at: start + 40n });
    assert.equal(short.reason, "Invalid proof");
  });

  rule("other_bytes_behind_a_taken_word_are_refused", async (w) => {
    const { id } = await w.open();
    assert.ok((await w.claim(id, 100n, proofBytes(1), { at: w.clock + 5n })).ok);
    const otherTail = await w.claim(id, 100n, proofBytes(1, 146), { at: w.clock + 5n });
    assert.equal(otherTail.reason, "Invalid proof");
  });

  rule("whole_proof_bytes_can_be_burnt_too", async (w) => {
    const { id } = await w.open();
    const args = [proofBytes(2), w.stranger, 1n];
    await w.ok(w.stranger, "proof_system", "verifyAndMarkComplete", args);
    const refused = await w.claim(id, 100n, proofBytes(2), { at: w.clock + 5n });
    assert.equal(refused.reason, "Invalid proof");
  });
});

// Rule 8 wherever there is one: not in v4.
const UNIQUE = VERSION_NAMES.filter((name) => TRAITS[name].claim !== "hash");
versionTests(test, UNIQUE, (rule, name) => {
  rule("a_proof_is_single_use_in_all_sessions_of_all_hosts", async (w) => {
    const [one, two] = [await w.open(), await w.open()];
    const other = await w.open({ host: w.host2 });
    const proof = proofBytes(1);
    assert.ok((await w.claim(one.id, 100n, proof, { at: w.clock + 5n })).ok);
    const sibling = await w.claim(two.id, 100n, proof, { at: w.clock + 5n });
    assert.equal(sibling.reason, taken(name, proof));
    const foreign = await w.claim(other.id, 100n, proof, { by: "host2", at: w.clock + 5n });
    assert.equal(foreign.reason, taken(name, proof));
    const read = (id) => w.read("job_marketplace", "sessionJobs", id);
    assert.equal((await read(two.id)).tokensUsed, 0n, "a refusal changes nothing");
    assert.equal((await read(other.id)).tokensUsed, 0n);
  });

  rule("another_host_can_burn_a_proof_by_claiming_with_it_first", async (w) => {
    const [ours, theirs] = [await w.open(), await w.open({ host: w.host2 })];
    const proof = proofBytes(1);
    const front = await w.claim(theirs.id, 100n, proof, { by: "host2", at: w.clock + 5n });
    assert.ok(front.ok, front.reason);
    const refused = await w.claim(ours.id, 100n, proof, { at: w.clock + 5n });
    assert.equal(refused.reason, taken(name, proof));
  });

  rule("a_stranger_can_burn_a_first_word_and_a_new_word_is_the_remedy", async (w) => {
    const { id } = await w.open();
    const burnt = proofBytes(1);
    await w.ok(w.stranger, "proof_system", "recordVerifiedProof", [word(burnt)]);
    assert.equal(await w.read("proof_system", "verifiedProofs", word(burnt)), true);
    const refused = await w.claim(id, 100n, burnt, { at: w.clock + 5n });
    assert.equal(refused.reason, taken(name, burnt));
    const renewed = ethers.concat([ethers.id("new word"), ethers.dataSlice(burnt, 32)]);
    assert.ok((await w.claim(id, 100n, renewed, { at: w.clock + 5n })).ok);
  });
});

versionTests(test, claims("hash+delta"), (rule, name) => {
  rule("marking_a_hash_used_is_open_to_anyone_and_happens_once", async (w) => {
    const { id } = await w.open();
    const hash = word(proofBytes(1));
    const { abi } = w;
    const data = abi.proof_system.encodeFunctionData("markProofUsed", [hash]);
    for (const first of [true, false]) {
      const raw = await w.rpc("eth_call", { to: w.addresses.proof_system, data }, "latest");
      assert.deepEqual([...abi.proof_system.decodeFunctionResult("markProofUsed", raw)], [first]);
      await w.ok(w.stranger, "proof_system", "markProofUsed", [hash]);
    }
    const refused = await w.claim(id, 100n, proofBytes(1), { at: w.clock + 5n });
    assert.equal(refused.reason, taken(name, proofBytes(1)));
  });
});

// v4 has nothing in the place of rules 7 and 8.
versionTests(test, VERSION_NAMES.filter((name) => TRAITS[name].claim === "hash"), (rule) => {
  rule("a_replay_is_accepted_and_charged_again", async (w) => {
    const { id } = await w.open();
    for (const total of [100n, 200n, 300n]) {
      const replay = await w.claim(id, 100n, proofBytes(1), { at: w.clock + 5n });
      assert.ok(replay.ok, replay.reason);
      const job = await w.read("job_marketplace", "sessionJobs", id);
      assert.equal(job.tokensUsed, total);
    }
  });

  rule("nothing_about_a_proof_is_checked", async (w) => {
    const { id } = await w.open();
    await w.ok(w.stranger, "proof_system", "recordVerifiedProof", [ethers.ZeroHash]);
    const args = [id, 100n, ethers.ZeroHash, ""];
    const at = w.clock + 5n;
    await w.ok(w.host, "job_marketplace", "submitProofOfWork", args, { at });
  });
});

// Rule 4 of v5 and v6.
versionTests(test, claims("signed"), (rule) => {
  const WRONG = "Invalid signature";
  const LENGTH = "Invalid signature length";
  const V = "Invalid signature v";
  const ORDER = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141n;

  /** Splits 65 bytes so that a test can change one part. */
  const parts = (signature) => ({
    r: ethers.dataSlice(signature, 0, 32),
    s: ethers.dataSlice(signature, 32, 64),
    v: Number(ethers.dataSlice(signature, 64)),
  });
  const joined = ({ r, s, v }) => ethers.concat([r, s, ethers.toBeHex(v)]);

  rule("a_signature_is_65_bytes_of_the_host_over_hash_host_and_tokens", async (w) => {
    const [hash, key] = [word(proofBytes(1)), w.accounts.host.private_key];
    const good = signClaim(key, hash, w.host, 100n);
    const p = parts(good);
    // The twin of a signature: s mirrored, v the other one. It recovers to the same key.
    const twin = { r: p.r, s: ethers.toBeHex(ORDER - BigInt(p.s), 32), v: 55 - p.v };
    const stranger = w.accounts.stranger.private_key;
    const inner = ethers.solidityPackedKeccak256(
      ["bytes32", "address", "uint256"], [hash, w.host, 100n],
    );
    const padded = ethers.keccak256(ethers.AbiCoder.defaultAbiCoder().encode(
      ["bytes32", "address", "uint256"], [hash, w.host, 100n],
    ));
    const host = new ethers.Wallet(key);
    const table = [
      ["no bytes", "0x", LENGTH],
      ["64 bytes", ethers.dataSlice(good, 0, 64), LENGTH],
      ["66 bytes", ethers.concat([good, "0x00"]), LENGTH],
      ["v 26", joined({ ...p, v: 26 }), V],
      ["v 29", joined({ ...p, v: 29 }), V],
      ["v 0 or 1", joined({ ...p, v: p.v - 27 }), V],
      ["the other v", joined({ ...p, v: 55 - p.v }), WRONG],
      ["the twin", joined(twin), WRONG],
      ["zeros", joined({ r: ethers.ZeroHash, s: ethers.ZeroHash, v: 27 }), WRONG],
      ["another key", signClaim(stranger, hash, w.host, 100n), WRONG],
      ["another hash", signClaim(key, word(proofBytes(2)), w.host, 100n), WRONG],
      ["another host", signClaim(key, hash, w.host2, 100n), WRONG],
      ["a token less", signClaim(key, hash, w.host, 99n), WRONG],
      ["a token more", signClaim(key, hash, w.host, 101n), WRONG],
      ["no EIP-191 prefix", host.signingKey.sign(inner).serialized, WRONG],
      ["words instead of packed bytes", host.signMessageSync(ethers.getBytes(padded)), WRONG],
      ["hex text instead of bytes", host.signMessageSync(inner), WRONG],
      ["the right one", good, undefined],
    ];
    const { id } = await w.open();
    for (const [what, signature, reason] of table) {
      const options = { signature, at: w.clock + 5n };
      const result = await w.claim(id, 100n, proofBytes(1), options);
      assert.equal(result.reason, reason, what);
    }
  });

  rule("the_documents_are_not_signed", async (w) => {
    const { id } = await w.open();
    const args = w.claimArgs(id, 100n, proofBytes(1));
    const swapped = args.map((arg) => (arg === "proof-cid" ? "something else" : arg));
    const at = w.clock + 5n;
    await w.ok(w.host, "job_marketplace", "submitProofOfWork", swapped, { at });
  });

  rule("a_signature_is_checked_before_the_rate", async (w) => {
    const { id, start } = await w.open();
    const forged = await w.claim(id, 2001n, proofBytes(1), { signature: "0x", at: start + 1n });
    assert.equal(forged.reason, LENGTH);
    const fast = await w.claim(id, 2n * 2000n + 1n, proofBytes(1), { at: start + 2n });
    assert.equal(fast.reason, "Excessive tokens claimed");
  });
});
