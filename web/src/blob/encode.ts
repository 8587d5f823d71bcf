// Writes a blob, version 1: the one form of its content (docs/spec/proof.md, "Blob").
//
// Never writes what a reader would refuse: content without a form is an error.

import { ClaimError, U32_MAX, U64_MAX, concat, hex, isEqual, isZero, sized } from "../bytes.js";
import type { DecodeSettings } from "../preimage.js";
import { f32 } from "../preimage.js";
import { CHUNK_TOKENS_MAX } from "../transcript.js";
import type { Blob, Chunk, Seed, Settings, Specs, Turn } from "./types.js";
import { ENDS, isByRule, joinedIds, nonceOfPrompt, outputs } from "./types.js";

export const MAGIC: Uint8Array = Uint8Array.of(0x54, 0x4c, 0x59, 0x42, 0x01);

/** How many turns back a prompt's beginning is looked for. */
export const TURNS_BACK = 16;

/** Origins of a seed. */
export const SEED = {
  ownBare: 0,
  derivedBare: 1,
  own: 2,
  stray: 3,
  derived: 4,
  toldBit: 8,
} as const;

const NARROW_MAX = 0xffff;

/** Unsigned LEB128 in its shortest form. */
export function leb(value: number | bigint, max: number | bigint = U32_MAX): Uint8Array {
  const isWhole = typeof value === "bigint" || Number.isSafeInteger(value);
  if (!isWhole || value < 0 || value > max) {
    throw new ClaimError("bad_number", `${value} is no whole number of 0..=${max}`);
  }
  if (value < 0x80) return Uint8Array.of(Number(value));
  let rest = BigInt(value);
  const bytes: number[] = [];
  do {
    const low = Number(rest & 0x7fn);
    rest >>= 7n;
    bytes.push(rest === 0n ? low : low | 0x80);
  } while (rest !== 0n);
  return Uint8Array.from(bytes);
}

function word(bytes: Uint8Array): Uint8Array {
  return sized(bytes, 32, "a word");
}

function writtenIds(ids: Uint32Array, isNarrow: boolean): Uint8Array {
  const width = isNarrow ? 2 : 4;
  const bytes = new Uint8Array(width * ids.length);
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < ids.length; i++) {
    if (isNarrow) view.setUint16(2 * i, ids[i]!, true);
    else view.setUint32(4 * i, ids[i]!, true);
  }
  return bytes;
}

/** Things that turns share, written once, in the order in which turns first name them. */
class Table {
  #places = new Map<string, number>();
  #rows: Uint8Array[] = [];

  place(row: Uint8Array): number {
    const key = hex(row);
    const known = this.#places.get(key);
    if (known !== undefined) return known;
    this.#places.set(key, this.#rows.length);
    this.#rows.push(row);
    return this.#rows.length - 1;
  }

  written(): Uint8Array {
    return concat([leb(this.#rows.length), ...this.#rows]);
  }
}

function writtenSpecs(specs: Specs): Uint8Array {
  return concat([word(specs.modelSpec), word(specs.tokenizerSpec), leb(specs.engineSpec)]);
}

function writtenSettings(settings: Settings): Uint8Array {
  if ("decodeSpec" in settings) {
    return concat([Uint8Array.of(0x00), word(settings.decodeSpec)]);
  }
  return concat([
    Uint8Array.of(0x01, settings.ignoreEos ? 1 : 0),
    f32(settings.temperature, true),
    leb(settings.topK),
    f32(settings.topP, true),
    f32(settings.minP, true),
    f32(settings.repetitionPenalty, true),
    f32(settings.frequencyPenalty, true),
    f32(settings.presencePenalty, true),
    leb(settings.maxTokens),
    writtenBias(settings.logitBias),
    ...writtenStops(settings.stop),
  ]);
}

function writtenBias(bias: DecodeSettings["logitBias"]): Uint8Array {
  const parts = [leb(bias.length)];
  let least = 0;
  for (const [id, value] of bias) {
    if (id < least || value === 0) {
      throw new ClaimError("bad_blob", "biases ascend by id, none of them is zero");
    }
    least = id + 1;
    parts.push(leb(id), f32(value, true));
  }
  return concat(parts);
}

function writtenStops(stops: readonly string[]): Uint8Array[] {
  const texts = stops.map((stop) => new TextEncoder().encode(stop));
  return [leb(texts.length), ...texts.flatMap((utf8) => [leb(utf8.length), utf8])];
}

function writtenSeed(seed: Seed, turn: Turn): Uint8Array {
  if (seed.nonces === undefined) {
    return concat([Uint8Array.of(seed.isOwn ? SEED.ownBare : SEED.derivedBare), word(seed.seed)]);
  }
  const { host, user, isTold } = seed.nonces;
  const ofPrompt = nonceOfPrompt(turn.promptIds);
  if (!isTold && !isEqual(user, ofPrompt)) {
    throw new ClaimError("bad_blob", "a nonce that the client did not tell is its prompt's digest");
  }
  const isRule = !seed.isOwn && isByRule(seed, turn.turnNo);
  const origin = seed.isOwn ? SEED.own : isRule ? SEED.derived : SEED.stray;
  return concat([
    Uint8Array.of(isTold ? origin | SEED.toldBit : origin),
    word(host),
    ...(isTold ? [word(user)] : []),
    ...(isRule ? [] : [word(seed.seed)]),
  ]);
}

/** The earlier turn that a prompt begins like, counted from 1 (0: none), and for how many ids. */
function longestBeginning(
  prompt: Uint32Array,
  turns: readonly Uint32Array[],
): { from: number; shared: number } {
  let best = { from: 0, shared: 0 };
  for (let place = Math.max(0, turns.length - TURNS_BACK); place < turns.length; place++) {
    const text = turns[place]!;
    const most = Math.min(prompt.length, text.length);
    let shared = 0;
    while (shared < most && prompt[shared] === text[shared]) shared++;
    if (shared > 0 && shared >= best.shared) best = { from: place + 1, shared };
  }
  return best;
}

function writtenChunk(chunk: Chunk, isNarrow: boolean): Uint8Array {
  const { ids, actDigest } = chunk;
  if (ids.length < 1 || ids.length > CHUNK_TOKENS_MAX) {
    throw new ClaimError("bad_blob", `a chunk of ${ids.length} tokens`);
  }
  const digest = actDigest === undefined || isZero(actDigest) ? [] : [word(actDigest)];
  const parts = [leb(chunk.turn), leb(2 * ids.length + digest.length), writtenIds(ids, isNarrow)];
  return concat([...parts, ...digest]);
}

function areNarrow(ids: Uint32Array): boolean {
  for (let i = 0; i < ids.length; i++) if (ids[i]! > NARROW_MAX) return false;
  return true;
}

/** The bytes of `blob`. */
export function encodeBlob(blob: Blob): Uint8Array {
  const { turns, chunks } = blob;
  if (blob.jobId === 0n) throw new ClaimError("bad_blob", "jobs count from 1");
  if (!chunks.some((chunk) => chunk.turn === turns.length - 1)) {
    throw new ClaimError("bad_blob", "the last turn is the last of which a token is covered");
  }
  if (new Set(turns.map((turn) => turn.turnNo)).size < turns.length) {
    throw new ClaimError("bad_blob", "a turn stands twice");
  }
  const isNarrow =
    turns.every((turn) => areNarrow(turn.promptIds)) && chunks.every((c) => areNarrow(c.ids));
  const specs = new Table();
  const settings = new Table();
  const made = outputs(turns.length, chunks);
  const texts: Uint32Array[] = [];
  const written = turns.map((turn, place) => {
    const prompt = turn.promptIds;
    const { from, shared } = longestBeginning(prompt, texts);
    texts.push(joinedIds([prompt, made[place]!]));
    return concat([
      leb(turn.turnNo),
      leb(specs.place(writtenSpecs(turn.specs))),
      leb(settings.place(writtenSettings(turn.settings))),
      writtenSeed(turn.seed, turn),
      Uint8Array.of(ENDS.indexOf(turn.end)),
      leb(from),
      ...(from > 0 ? [leb(shared)] : []),
      leb(prompt.length - shared),
      writtenIds(prompt.subarray(shared), isNarrow),
    ]);
  });
  return concat([
    MAGIC,
    Uint8Array.of(isNarrow ? 1 : 0),
    leb(blob.chainId, U64_MAX),
    sized(blob.marketplace, 20, "marketplace"),
    leb(blob.jobId, U64_MAX),
    leb(blob.seq),
    specs.written(),
    settings.written(),
    leb(turns.length),
    ...written,
    leb(chunks.length),
    ...chunks.map((chunk) => writtenChunk(chunk, isNarrow)),
  ]);
}
