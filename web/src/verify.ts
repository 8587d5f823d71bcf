// The check of a claim: do blob and proof bytes say the same, and who says it?
//
// Checked: root, sum, claim word, count, signature, seeds against nonces, flags against content.
// Never checked here: whether the model says these tokens. That needs the weights.

import type { Blob, Turn } from "./blob/types.js";
import { isByRule, rootOf } from "./blob/types.js";
import { decodeBlob } from "./blob/decode.js";
import { ClaimError, hex, isEqual } from "./bytes.js";
import type { Domain } from "./eip712.js";
import { voucherDigest } from "./eip712.js";
import { strayNonces } from "./nonces.js";
import { ZERO_WORD, derivedSeed } from "./preimage.js";
import type { Proof } from "./proof.js";
import { FLAG, decodeProof } from "./proof.js";
import { recoverSigner } from "./signature.js";

/** Most models that a blob's signature is tried with. */
const MODELS_MAX = 64;

/** What the caller knows from the chain, and from nobody else. */
export interface Expected extends Domain {
  /** The host's address; the session key's where the proof has flag 1. */
  signer: Uint8Array;
  jobId?: bigint;
  /** The contract's count after the claim; compared where it is told. */
  tokensUsed?: bigint;
  /** Tokens that the job had claimed before the node's ledger first saw it; 0 where not told. */
  tokensBefore?: bigint;
  /** Commitments of the host's nonce chains, by the chain's number. */
  commitments?: ReadonlyMap<number, Uint8Array>;
}

/** What was found. `ok` is true where `reasons` is empty. */
export interface Verdict {
  ok: boolean;
  /** Tokens of the blob's leaves: those of the node's ledger. */
  tokens?: number;
  /** The root that the blob gives. */
  root?: Uint8Array;
  /** The address that signed the proof's voucher for a model of the blob. */
  signer?: Uint8Array;
  /** modelSpec of the voucher. */
  model?: Uint8Array;
  flags?: number;
  /** `code: words`, one for each check that failed. */
  reasons: string[];
}

/** Runs `read`; a refusal becomes a reason. */
function attempt<T>(reasons: string[], read: () => T): T | undefined {
  try {
    return read();
  } catch (why) {
    if (!(why instanceof ClaimError)) throw why;
    reasons.push(why.message);
    return undefined;
  }
}

/** Models of covered turns, the last leaf's first. */
function models(blob: Blob): Uint8Array[] {
  const found = new Map<string, Uint8Array>();
  for (const { turn } of [...blob.chunks].reverse()) {
    const { modelSpec } = blob.turns[turn]!.specs;
    found.set(hex(modelSpec), modelSpec);
    if (found.size === MODELS_MAX) break;
  }
  return [...found.values()];
}

/** The voucher's signer and model: those of `expected.signer` where one of the models gives it. */
function signed(
  blob: Blob,
  proof: Proof,
  expected: Expected,
): { signer: Uint8Array; model: Uint8Array } {
  const voucher = { ...proof, jobId: blob.jobId };
  const tried = models(blob).map((model) => {
    const digest = voucherDigest(expected, { ...voucher, model });
    return { signer: recoverSigner(digest, proof.signature), model };
  });
  return tried.find(({ signer }) => isEqual(signer, expected.signer)) ?? tried[0]!;
}

/** Seeds that their nonces do not give, and nonces that are no links of their chains. */
function seedReasons(turns: readonly Turn[], expected: Expected): string[] {
  const reasons: string[] = [];
  for (const { turnNo, seed } of turns) {
    if (seed.isOwn) continue;
    const isRight =
      seed.nonces === undefined
        ? isEqual(seed.seed, derivedSeed(ZERO_WORD, ZERO_WORD, turnNo))
        : isByRule(seed, turnNo);
    if (!isRight) reasons.push(`seed_differs: turn ${turnNo}: its nonces give another`);
  }
  const told = turns.flatMap(({ turnNo, seed }) =>
    seed.nonces === undefined ? [] : [{ turnNo, hostNonce: seed.nonces.host }],
  );
  for (const turnNo of strayNonces(told, expected.commitments ?? new Map())) {
    reasons.push(`nonce_stray: turn ${turnNo}: its host nonce is no link of its chain`);
  }
  return reasons;
}

/** What the flags of a claim with this blob say, of those that a blob can show. */
export function merits(blob: Blob): { isCanonical: boolean; isDerived: boolean } {
  const covered = blob.chunks.map(({ turn }) => blob.turns[turn]!);
  const isCanonical =
    covered.every(({ specs }) => specs.engineSpec > 0) &&
    blob.chunks.every(({ actDigest }) => actDigest !== undefined);
  const isDerived = covered.some(({ seed }) => !seed.isOwn && seed.nonces?.isTold !== true);
  return { isCanonical, isDerived };
}

/** Flags that claim more than the blob shows; one that claims less harms nobody. */
function flagReasons(blob: Blob, flags: number): string[] {
  const { isCanonical, isDerived } = merits(blob);
  const reasons: string[] = [];
  if ((flags & FLAG.canonical) !== 0 && !isCanonical) {
    reasons.push("flag_differs: canonical, but digests of hidden states are missing");
  }
  if ((flags & FLAG.nonceDerived) === 0 && isDerived) {
    reasons.push("flag_differs: a user's nonce was derived, and the flag hides it");
  }
  return reasons;
}

function compare(blob: Blob, proof: Proof, expected: Expected): Verdict {
  const { root, top } = rootOf(blob);
  const reasons: string[] = [];
  const same = (code: string, wanted: unknown, found: unknown): void => {
    if (wanted !== found) reasons.push(`${code}: wanted ${wanted}, found ${found}`);
  };
  same("chain_differs", expected.chainId, blob.chainId);
  same("marketplace_differs", hex(expected.marketplace), hex(blob.marketplace));
  same("job_differs", expected.jobId ?? blob.jobId, blob.jobId);
  same("seq_differs", proof.seq, blob.seq);
  same("root_differs", hex(proof.root), hex(root));
  same("count_differs", proof.cumTokens, BigInt(top.tokens));
  const used = BigInt(top.tokens) + (expected.tokensBefore ?? 0n);
  same("used_differs", expected.tokensUsed ?? used, used);
  const by = attempt(reasons, () => signed(blob, proof, expected));
  if (by !== undefined) same("signer_differs", hex(expected.signer), hex(by.signer));
  reasons.push(...seedReasons(blob.turns, expected), ...flagReasons(blob, proof.flags));
  const { flags } = proof;
  return { ok: reasons.length === 0, tokens: top.tokens, root, ...by, flags, reasons };
}

/** Compares a claim's blob and proof bytes with each other and with the chain. Never throws for
 * what it is given, but for what `expected` lacks. */
export function verify(blob: Uint8Array, proof: Uint8Array, expected: Expected): Verdict {
  const reasons: string[] = [];
  const readBlob = attempt(reasons, () => decodeBlob(blob));
  const readProof = attempt(reasons, () => decodeProof(proof));
  if (readBlob === undefined || readProof === undefined) return { ok: false, reasons };
  return compare(readBlob, readProof, expected);
}
