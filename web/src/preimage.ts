// What is hashed, byte by byte: headers of turns, chunks, nodes, roots, specs, seeds.
//
// The layouts are those of docs/spec/proof.md, sections "Transcript" and its table of widths.
// Never decides which tokens stand where: that is transcript.ts.

import { keccak_256 } from "@noble/hashes/sha3";
import { ClaimError, be, concat, leIds, sized } from "./bytes.js";

/** keccak256 over `parts`, one behind the other. */
export function H(...parts: Uint8Array[]): Uint8Array {
  return keccak_256(parts.length === 1 ? parts[0]! : concat(parts));
}

export const ZERO_WORD: Uint8Array = new Uint8Array(32);

/** What a turn's header binds, but for the header before it. */
export interface TurnHeader {
  turnNo: number;
  modelSpec: Uint8Array;
  tokenizerSpec: Uint8Array;
  decodeSpec: Uint8Array;
  engineSpec: number;
  seed: Uint8Array;
  promptIds: Uint32Array;
}

/** How tokens were chosen. Floats are those an f32 can hold. */
export interface DecodeSettings {
  temperature: number;
  topK: number;
  topP: number;
  minP: number;
  repetitionPenalty: number;
  maxTokens: number;
  stop: readonly string[];
  frequencyPenalty: number;
  presencePenalty: number;
  /** By ascending id; none of them zero. */
  logitBias: readonly (readonly [id: number, bias: number])[];
  ignoreEos: boolean;
}

export function promptDigest(promptIds: Uint32Array): Uint8Array {
  return H(leIds(promptIds));
}

export function turnHash(jobId: bigint, turn: TurnHeader, prevTurn: Uint8Array): Uint8Array {
  return H(
    Uint8Array.of(0x01),
    be(jobId, 32),
    be(turn.turnNo, 4),
    sized(turn.modelSpec, 32, "modelSpec"),
    sized(turn.tokenizerSpec, 32, "tokenizerSpec"),
    sized(turn.decodeSpec, 32, "decodeSpec"),
    be(turn.engineSpec, 4),
    sized(turn.seed, 32, "seed"),
    be(turn.promptIds.length, 4),
    promptDigest(turn.promptIds),
    sized(prevTurn, 32, "prevTurn"),
  );
}

/** Where a chunk stands: its number in the turn, and the turn's tokens before it. */
export interface ChunkPlace {
  turn: Uint8Array;
  k: number;
  pos0: number;
}

export function chunkHash(
  place: ChunkPlace,
  outIds: Uint32Array,
  actDigest: Uint8Array,
): Uint8Array {
  return H(
    Uint8Array.of(0x00),
    sized(place.turn, 32, "turn"),
    be(place.k, 4),
    be(place.pos0, 4),
    be(outIds.length, 4),
    leIds(outIds),
    sized(actDigest, 32, "actDigest"),
  );
}

/** A node of the sum tree: its hash and the tokens beneath it. */
export interface SumNode {
  hash: Uint8Array;
  tokens: number;
}

export function joined(left: SumNode, right: SumNode): SumNode {
  const hash = H(
    Uint8Array.of(0x02),
    left.hash,
    be(left.tokens, 4),
    right.hash,
    be(right.tokens, 4),
  );
  return { hash, tokens: left.tokens + right.tokens };
}

export function rootHash(jobId: bigint, seq: number, top: SumNode): Uint8Array {
  return H(Uint8Array.of(0x03), be(jobId, 32), be(seq, 4), top.hash, be(top.tokens, 8));
}

export function claimWord(root: Uint8Array, salt: number): Uint8Array {
  return H(Uint8Array.of(0x04), sized(root, 32, "root"), be(salt, 2));
}

export function derivedSeed(host: Uint8Array, user: Uint8Array, turnNo: number): Uint8Array {
  return H(sized(host, 32, "hostNonce"), sized(user, 32, "userNonce"), be(turnNo, 4));
}

/** Bits of an f32; refuses a number that no f32 is. */
export function f32(value: number, littleEndian: boolean): Uint8Array {
  if (!Number.isFinite(value) || Math.fround(value) !== value) {
    throw new ClaimError("bad_float", `${value} is no finite number of 32 bits`);
  }
  const bytes = new Uint8Array(4);
  // Adding zero turns a negative zero into zero.
  new DataView(bytes.buffer).setFloat32(0, value + 0, littleEndian);
  return bytes;
}

function text(value: string): Uint8Array {
  const utf8 = new TextEncoder().encode(value);
  return concat([be(utf8.length, 4), utf8]);
}

export function decodeSpec(settings: DecodeSettings): Uint8Array {
  const { frequencyPenalty, presencePenalty, ignoreEos } = settings;
  const bias = settings.logitBias.filter(([, value]) => value !== 0);
  const isPlain =
    frequencyPenalty === 0 && presencePenalty === 0 && bias.length === 0 && !ignoreEos;
  const parts = [
    Uint8Array.of(isPlain ? 0x01 : 0x02),
    f32(settings.temperature, false),
    be(settings.topK, 4),
    f32(settings.topP, false),
    f32(settings.minP, false),
    f32(settings.repetitionPenalty, false),
    be(settings.maxTokens, 4),
    be(settings.stop.length, 4),
    ...settings.stop.map(text),
  ];
  if (!isPlain) {
    parts.push(f32(frequencyPenalty, false), f32(presencePenalty, false), be(bias.length, 4));
    for (const [id, value] of bias) parts.push(be(id, 4), f32(value, false));
    if (ignoreEos) parts.push(be(1, 4));
  }
  return H(concat(parts));
}

/** `weights`: SHA-256 of the weights. */
export function modelSpec(weights: Uint8Array, quantisation: string, shape: string): Uint8Array {
  return H(sized(weights, 32, "weights"), text(quantisation), text(shape));
}

/** `file`: SHA-256 of the file that describes the tokenizer. */
export function tokenizerSpec(file: Uint8Array): Uint8Array {
  return H(sized(file, 32, "tokenizer file"));
}
