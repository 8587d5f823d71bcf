// Claims of the node's are accepted as they are, and for every change there is a reason.

import assert from "node:assert/strict";
import { test } from "node:test";
import { secp256k1 } from "@noble/curves/secp256k1";
import { decodeBlob } from "../blob/decode.js";
import { encodeBlob } from "../blob/encode.js";
import type { Blob } from "../blob/types.js";
import { isByRule, rootOf } from "../blob/types.js";
import { ClaimError, concat, hex, isEqual, unhex } from "../bytes.js";
import { delegationDigest, voucherDigest } from "../eip712.js";
import { commitmentOf, linkOf, strayNonces } from "../nonces.js";
import { H } from "../preimage.js";
import type { Proof } from "../proof.js";
import { FLAG, decodeProof, encodeProof, fromContentId, toContentId } from "../proof.js";
import { recoverSigner } from "../signature.js";
import type { Expected } from "../verify.js";
import { verify } from "../verify.js";
import { fixture } from "./fixtures.js";
import { Dice, mutated } from "./random.js";

const SEED = 20_261_123;

interface Told {
  blob: string;
  proof: string;
  chain_id: string;
  marketplace: string;
  signer: string;
  root: string;
  tokens: number;
  model: string;
  honest: boolean;
  commitments: [number, string][];
}

const claims = fixture<{ claims: Told[] }>("tests/fixtures/proof/blobs.json").claims;
const honest = claims.filter((claim) => claim.honest);

function expectedOf(told: Told): Expected {
  return {
    chainId: BigInt(told.chain_id),
    marketplace: unhex(told.marketplace),
    signer: unhex(told.signer),
    commitments: new Map(told.commitments.map(([chain, link]) => [chain, unhex(link)])),
  };
}

test("committed claims verify as the node says", () => {
  assert.ok(honest.length >= 8 && honest.length < claims.length);
  for (const [i, told] of claims.entries()) {
    const verdict = verify(unhex(told.blob), unhex(told.proof), expectedOf(told));
    assert.equal(verdict.ok, told.honest, `claim ${i}: ${verdict.reasons.join("; ")}`);
    assert.equal(hex(verdict.root!), told.root);
    assert.equal(verdict.tokens, told.tokens);
    assert.equal(hex(verdict.signer!), told.signer);
    assert.equal(hex(verdict.model!), told.model);
    const codes = verdict.reasons.map((reason) => reason.split(":")[0]);
    if (!told.honest) assert.deepEqual([...new Set(codes)], ["seed_differs"]);
    assert.equal(hex(encodeBlob(decodeBlob(unhex(told.blob)))).slice(2), told.blob);
  }
});

const KEY = new Uint8Array(32).fill(3);
const KEY_ADDRESS = H(secp256k1.getPublicKey(KEY, false).slice(1)).slice(12);

/** The claim of `blob`, signed anew by a key of this test. */
function signedAnew(blob: Blob, changes: Partial<Proof>, domain: Expected): Uint8Array {
  const { root, top } = rootOf(blob);
  const flags = FLAG.nonceDerived;
  const base = { flags, cumTokens: BigInt(top.tokens), seq: blob.seq, salt: 0, root, ...changes };
  const model = blob.turns[blob.chunks.at(-1)!.turn]!.specs.modelSpec;
  const digest = voucherDigest(domain, { ...base, jobId: blob.jobId, model });
  const made = secp256k1.sign(digest, KEY);
  const signature = concat([made.toCompactRawBytes(), Uint8Array.of(27 + made.recovery)]);
  return encodeProof({ ...base, signature });
}

/** Codes of the reasons why a claim changed like this is refused. */
function codes(blob: Blob, expected: Expected, changes: Partial<Proof> = {}): string[] {
  const mine = { ...expected, signer: KEY_ADDRESS };
  const verdict = verify(encodeBlob(blob), signedAnew(blob, changes, mine), mine);
  assert.equal(verdict.ok, verdict.reasons.length === 0);
  return verdict.reasons.map((reason) => reason.split(":")[0]!);
}

test("for every change that a claim's maker could sign there is a reason", () => {
  const told = honest.find(({ blob }) => {
    return decodeBlob(unhex(blob)).turns.some(({ seed, turnNo }) => isByRule(seed, turnNo));
  })!;
  const blob = decodeBlob(unhex(told.blob));
  const expected = expectedOf(told);
  const last = blob.chunks.at(-1)!;
  const tokens = rootOf(blob).top.tokens;
  const [one, other] = [blob.turns[0]!, new Uint8Array(32).fill(9)];
  const nonces = { host: other, user: other, isTold: true };
  const odd = { ...one, seed: { isOwn: false, seed: other, nonces } };
  const oddSeed: Blob = { ...blob, turns: [odd, ...blob.turns.slice(1)] };
  const bare = { ...blob, chunks: blob.chunks.map(({ turn, ids }) => ({ turn, ids })) };
  const table: [what: string, codes: string[], wanted: string[]][] = [
    ["nothing", codes(blob, expected), []],
    ["its count", codes(blob, expected, { cumTokens: BigInt(tokens + 1) }), ["count_differs"]],
    ["its root", codes(blob, expected, { root: other }), ["root_differs"]],
    ["its number", codes(blob, expected, { seq: blob.seq + 1 }), ["seq_differs"]],
    ["the chain", codes(blob, { ...expected, chainId: 2n }), ["chain_differs"]],
    ["the job", codes(blob, { ...expected, jobId: blob.jobId + 1n }), ["job_differs"]],
    ["the contract", codes(blob, { ...expected, marketplace: other.slice(12) }), [
      "marketplace_differs",
    ]],
    ["the contract's count", codes(blob, { ...expected, tokensUsed: 10n ** 9n }), ["used_differs"]],
    ["a seed", codes(oddSeed, expected), ["seed_differs", "nonce_stray"]],
    ["a missing digest", codes(bare, expected, { flags: 10 }), ["flag_differs"]],
  ];
  for (const [what, found, wanted] of table) assert.deepEqual(found, wanted, what);
  const before = { ...expected, tokensUsed: BigInt(tokens + 5), tokensBefore: 5n };
  assert.deepEqual(codes(blob, before), []);
  // One id changed under the signature that stands: the root tells.
  last.ids[0]! ^= 1;
  const verdict = verify(encodeBlob(blob), unhex(told.proof), expected);
  assert.deepEqual(verdict.reasons.map((reason) => reason.split(":")[0]), ["root_differs"]);
});

test("a claim that hides a derived nonce is refused", () => {
  const told = honest.find(({ proof }) => {
    return (decodeProof(unhex(proof)).flags & FLAG.nonceDerived) !== 0;
  })!;
  const blob = decodeBlob(unhex(told.blob));
  assert.deepEqual(codes(blob, expectedOf(told), { flags: 0 }), ["flag_differs"]);
  assert.deepEqual(codes(blob, expectedOf(told), { flags: 8 }), []);
});

test("any changed proof is refused, and no garbage ends otherwise than by reasons", () => {
  const dice = new Dice(SEED);
  for (const told of honest.slice(0, 4)) {
    const [blob, proof] = [unhex(told.blob), unhex(told.proof)];
    for (let bit = 0; bit < 8 * proof.length; bit += 7) {
      const other = proof.slice();
      other[bit >> 3]! ^= 1 << (bit & 7);
      const verdict = verify(blob, other, expectedOf(told));
      assert.ok(!verdict.ok || isFlag(other, proof), `bit ${bit}`);
    }
    for (let i = 0; i < 250; i++) {
      const other = mutated(dice, blob);
      const verdict = verify(other, proof, expectedOf(told));
      if (verdict.ok) assert.equal(hex(verdict.root!), told.root);
      assert.equal(verify(blob, mutated(dice, other), expectedOf(told)).ok, false);
    }
  }
});

/** Whether only flags differ that no blob can show: they are outside the signature. */
function isFlag(a: Uint8Array, b: Uint8Array): boolean {
  return isEqual(a.slice(0, 33), b.slice(0, 33)) && isEqual(a.slice(34), b.slice(34));
}

test("a content id holds the proof and has one form", () => {
  for (const told of claims) {
    const proof = unhex(told.proof);
    const { proofHash, proofCid } = toContentId(proof);
    assert.equal(proofCid.length, 157);
    assert.ok(proofCid.startsWith("uAVUAcQ"));
    assert.deepEqual(fromContentId(proofHash, proofCid), proof);
    const bad = [
      proofCid.slice(1),
      `${proofCid}=`,
      `${proofCid}A`,
      proofCid.slice(0, -1),
      proofCid.replace("uAVUAcQ", "uAVUAcA"),
      proofCid.replace("uAVUAcQ", "uAVUScQ"),
      "u",
      "",
    ];
    for (const cid of bad) assert.throws(() => fromContentId(proofHash, cid), ClaimError, cid);
  }
});

test("a signature has one form", () => {
  const digest = H(KEY);
  const made = secp256k1.sign(digest, KEY);
  const of = (bytes: Uint8Array, v: number): Uint8Array => concat([bytes, Uint8Array.of(v)]);
  const good = of(made.toCompactRawBytes(), 27 + made.recovery);
  assert.deepEqual(recoverSigner(digest, good), KEY_ADDRESS);
  const twin = new secp256k1.Signature(made.r, secp256k1.CURVE.n - made.s);
  const bad = [
    of(twin.toCompactRawBytes(), 28 - made.recovery),
    of(made.toCompactRawBytes(), made.recovery),
    of(made.toCompactRawBytes(), 29),
    new Uint8Array(65),
    of(new Uint8Array(64), 27),
    of(new Uint8Array(64).fill(0xff), 28),
    good.slice(0, 64),
  ];
  for (const signature of bad) {
    assert.throws(() => recoverSigner(digest, signature), ClaimError, hex(signature));
  }
});

test("a delegation is what a wallet signs", () => {
  const vectors = "tests/fixtures/proof/vectors.json";
  const told = fixture<{ delegations: Record<string, string>[] }>(vectors);
  for (const vector of told.delegations) {
    const of = (name: string): Uint8Array => unhex(vector[name]!);
    const domain = { chainId: BigInt(vector.chain_id!), marketplace: of("contract") };
    const digest = delegationDigest(domain, {
      jobId: BigInt(vector.job!),
      sessionKey: of("session_key"),
      host: of("host"),
      model: of("model"),
      price: BigInt(vector.price!),
      cap: BigInt(vector.cap!),
      expiry: BigInt(vector.expiry!),
    });
    assert.equal(hex(digest), vector.digest);
    assert.equal(hex(recoverSigner(digest, of("signature"))), vector.signer);
  }
  assert.equal(told.delegations.length, 3);
});

test("a host nonce is a link of the chain that was committed", () => {
  const links = [H(KEY)];
  while (links.length < 1024) links.unshift(H(links[0]!));
  const commitment = H(links[0]!);
  assert.deepEqual(linkOf(2047), { chain: 1, link: 1023 });
  for (const p of [0, 1, 500, 1023]) {
    assert.deepEqual(commitmentOf(1024 + p, links[p]!), commitment, `${p}`);
  }
  const told = [3, 0, 1023].map((p) => ({ turnNo: 1024 + p, hostNonce: links[p]! }));
  assert.deepEqual(strayNonces(told, new Map([[1, commitment]])), []);
  assert.deepEqual(strayNonces(told, new Map()), []);
  assert.deepEqual(strayNonces(told, new Map([[1, KEY]])), [1024, 1027, 2047]);
  const odd = [...told, { turnNo: 1024 + 9, hostNonce: links[8]! }];
  assert.deepEqual(strayNonces(odd, new Map()), [1033]);
});
