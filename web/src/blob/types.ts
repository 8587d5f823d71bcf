// What a blob says: everything that re-running a claim needs.
//
// Bounds that a reader keeps, so that a stranger's bytes cost bounded memory. Never bytes: those
// are encode.ts and decode.ts.

import { ClaimError, isEqual } from "../bytes.js";
import type { DecodeSettings, SumNode, TurnHeader } from "../preimage.js";
import { decodeSpec, derivedSeed, promptDigest, rootHash } from "../preimage.js";
import { Transcript } from "../transcript.js";

/** Most ids of all prompts, unfolded, that this reader holds: 256 MiB. A prompt may repeat an
 * earlier turn's at the cost of a few bytes, so few bytes could ask for far more. */
export const PROMPT_IDS_MAX = 1 << 26;

/** Why a turn ended. */
export const ENDS = ["none", "stop", "length", "cancelled", "deposit_exhausted", "error"] as const;
export type End = (typeof ENDS)[number];

/** What made a turn's tokens. */
export interface Specs {
  modelSpec: Uint8Array;
  tokenizerSpec: Uint8Array;
  engineSpec: number;
}

/** How tokens were chosen; old ledgers hold its digest only. */
export type Settings = { decodeSpec: Uint8Array } | DecodeSettings;

/** Where a turn's seed came from. */
export interface Seed {
  /** The client's own number, or derived. */
  isOwn: boolean;
  seed: Uint8Array;
  /** Both sides' nonces; none where the ledger recorded none. */
  nonces?: {
    host: Uint8Array;
    user: Uint8Array;
    /** Whether the client told its nonce; else it is the digest of the prompt's ids. */
    isTold: boolean;
  };
}

export interface Turn {
  turnNo: number;
  specs: Specs;
  settings: Settings;
  seed: Seed;
  end: End;
  promptIds: Uint32Array;
}

export interface Chunk {
  /** Place of its turn in `turns`, from 0. */
  turn: number;
  ids: Uint32Array;
  actDigest?: Uint8Array;
}

export interface Blob {
  chainId: bigint;
  marketplace: Uint8Array;
  jobId: bigint;
  seq: number;
  /** In the order of the ledger, up to the last one of which the claim covers a token. */
  turns: Turn[];
  /** In the order in which they closed. */
  chunks: Chunk[];
}

/** Whether the seed is the one that both nonces give. */
export function isByRule(seed: Seed, turnNo: number): boolean {
  const { nonces } = seed;
  return nonces !== undefined && isEqual(seed.seed, derivedSeed(nonces.host, nonces.user, turnNo));
}

/** The user's nonce where the client told none. */
export function nonceOfPrompt(promptIds: Uint32Array): Uint8Array {
  return promptDigest(promptIds);
}

export function headerOf(turn: Turn): TurnHeader {
  const { turnNo, specs, settings, seed, promptIds } = turn;
  const digest = "decodeSpec" in settings ? settings.decodeSpec : decodeSpec(settings);
  return { turnNo, ...specs, decodeSpec: digest, seed: seed.seed, promptIds };
}

/** The top of the sum tree and the root over it. */
export function rootOf(blob: Blob): { root: Uint8Array; top: SumNode } {
  const transcript = new Transcript(blob.jobId);
  for (const turn of blob.turns) transcript.begin(headerOf(turn));
  for (const { turn, ids, actDigest } of blob.chunks) transcript.push(turn, ids, actDigest);
  const top = transcript.top();
  return { root: rootHash(blob.jobId, blob.seq, top), top };
}

/** The covered output of each turn, by place. */
export function outputs(turns: number, chunks: readonly Chunk[]): Uint32Array[] {
  const parts: Uint32Array[][] = Array.from({ length: turns }, () => []);
  for (const chunk of chunks) {
    const of = parts[chunk.turn];
    if (of === undefined) throw new ClaimError("bad_blob", `no turn has place ${chunk.turn}`);
    of.push(chunk.ids);
  }
  return parts.map(joinedIds);
}

export function joinedIds(parts: readonly Uint32Array[]): Uint32Array {
  const whole = new Uint32Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
