// Reads a blob, version 1, and refuses every form but the one that encode.ts writes.
//
// Never trusts a count: what is announced must fit in the bytes that are left, and what repeated
// prompts unfold to is bounded. Whatever is wrong ends as a `ClaimError`.

import { ClaimError, U32_MAX, U64_MAX, isEqual } from "../bytes.js";
import type { DecodeSettings } from "../preimage.js";
import { derivedSeed } from "../preimage.js";
import { CHUNK_TOKENS_MAX } from "../transcript.js";
import { MAGIC, SEED, encodeBlob } from "./encode.js";
import type { Blob, Chunk, End, Seed, Settings, Specs, Turn } from "./types.js";
import { ENDS, PROMPT_IDS_MAX, joinedIds, nonceOfPrompt, outputs } from "./types.js";

function refused(words: string): ClaimError {
  return new ClaimError("bad_blob", words);
}

/** A place in the bytes. */
class Reader {
  #bytes: Uint8Array;
  #at = 0;
  isNarrow = false;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  get left(): number {
    return this.#bytes.length - this.#at;
  }

  take(size: number): Uint8Array {
    if (size > this.left) throw refused(`${size} bytes wanted, ${this.left} left`);
    this.#at += size;
    return this.#bytes.slice(this.#at - size, this.#at);
  }

  byte(): number {
    const byte = this.#bytes[this.#at];
    if (byte === undefined) throw refused("a byte wanted, none left");
    this.#at += 1;
    return byte;
  }

  word(): Uint8Array {
    return this.take(32);
  }

  wide(): bigint {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = this.byte();
      value |= BigInt(byte & 0x7f) << shift;
      if (value > U64_MAX) throw refused("a number of more than 64 bits");
      if (byte < 0x80) {
        if (byte === 0 && shift > 0n) throw refused("a number in a long form");
        return value;
      }
      if (shift > 63n) throw refused("a number of more than 64 bits");
    }
  }

  number(): number {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = this.byte();
      value += (byte & 0x7f) * scale;
      if (value > U32_MAX) throw refused("a number of more than 32 bits");
      if (byte < 0x80) {
        if (byte === 0 && scale > 1) throw refused("a number in a long form");
        return value;
      }
      if (scale > 2 ** 28) throw refused("a number of more than 32 bits");
    }
  }

  /** How many things follow, each of `size` bytes at least. */
  count(size: number): number {
    const count = this.number();
    if (count * size > this.left) throw refused(`${count} things announced, ${this.left} bytes`);
    return count;
  }

  many<T>(size: number, one: () => T): T[] {
    return Array.from({ length: this.count(size) }, one);
  }

  f32(): number {
    const value = new DataView(this.take(4).buffer).getFloat32(0, true);
    if (!Number.isFinite(value)) throw refused("a float that is no number");
    return value;
  }

  /** `count` ids. */
  ids(count: number): Uint32Array {
    const width = this.isNarrow ? 2 : 4;
    const view = new DataView(this.take(width * count).buffer);
    const ids = new Uint32Array(count);
    for (let i = 0; i < count; i++) {
      ids[i] = this.isNarrow ? view.getUint16(2 * i, true) : view.getUint32(4 * i, true);
    }
    return ids;
  }

  flag(): boolean {
    const byte = this.byte();
    if (byte > 1) throw refused(`a flag of ${byte}`);
    return byte === 1;
  }
}

function readSpecs(reader: Reader): Specs {
  const [modelSpec, tokenizerSpec] = [reader.word(), reader.word()];
  return { modelSpec, tokenizerSpec, engineSpec: reader.number() };
}

function readSettings(reader: Reader): Settings {
  if (!reader.flag()) return { decodeSpec: reader.word() };
  const ignoreEos = reader.flag();
  const temperature = reader.f32();
  const topK = reader.number();
  const [topP, minP, repetitionPenalty] = [reader.f32(), reader.f32(), reader.f32()];
  const [frequencyPenalty, presencePenalty] = [reader.f32(), reader.f32()];
  const maxTokens = reader.number();
  const logitBias: DecodeSettings["logitBias"] = reader.many(5, () => {
    const id = reader.number();
    return [id, reader.f32()] as const;
  });
  const stop = reader.many(1, () => readText(reader));
  return {
    ...{ temperature, topK, topP, minP, repetitionPenalty, maxTokens, stop },
    ...{ frequencyPenalty, presencePenalty, logitBias, ignoreEos },
  };
}

function readText(reader: Reader): string {
  const utf8 = reader.take(reader.count(1));
  try {
    // A byte order mark is text like any other.
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(utf8);
  } catch {
    throw refused("a stop that is no UTF-8");
  }
}

/** A seed as it stands; what follows from turn and prompt is filled in by `seedOf`. */
interface RawSeed {
  origin: number;
  isTold: boolean;
  host?: Uint8Array;
  user?: Uint8Array;
  seed?: Uint8Array;
}

function readSeed(reader: Reader): RawSeed {
  const byte = reader.byte();
  const isTold = (byte & SEED.toldBit) !== 0;
  const origin = byte & ~SEED.toldBit;
  const isBare = origin === SEED.ownBare || origin === SEED.derivedBare;
  if (origin > SEED.derived || (isBare && isTold)) throw refused(`a seed of origin ${byte}`);
  if (isBare) return { origin, isTold, seed: reader.word() };
  const host = reader.word();
  const user = isTold ? { user: reader.word() } : {};
  const seed = origin === SEED.derived ? {} : { seed: reader.word() };
  return { origin, isTold, host, ...user, ...seed };
}

function seedOf(raw: RawSeed, turnNo: number, promptIds: Uint32Array): Seed {
  const isOwn = raw.origin === SEED.ownBare || raw.origin === SEED.own;
  if (raw.host === undefined) return { isOwn, seed: raw.seed! };
  const user = raw.user ?? nonceOfPrompt(promptIds);
  const seed = raw.seed ?? derivedSeed(raw.host, user, turnNo);
  return { isOwn, seed, nonces: { host: raw.host, user, isTold: raw.isTold } };
}

/** A turn whose prompt is not unfolded yet. */
interface RawTurn {
  turnNo: number;
  specs: Specs;
  settings: Settings;
  seed: RawSeed;
  end: End;
  from: number;
  shared: number;
  added: Uint32Array;
}

interface Tables {
  specs: Specs[];
  settings: Settings[];
}

function readTurn(reader: Reader, tables: Tables): RawTurn {
  const turnNo = reader.number();
  const specs = tables.specs[reader.number()];
  const settings = tables.settings[reader.number()];
  if (specs === undefined || settings === undefined) throw refused("a place past its table");
  const seed = readSeed(reader);
  const end = ENDS[reader.byte()];
  if (end === undefined) throw refused("an end without a meaning");
  const from = reader.number();
  const shared = from > 0 ? reader.number() : 0;
  const added = reader.ids(reader.count(reader.isNarrow ? 2 : 4));
  return { turnNo, specs, settings, seed, end, from, shared, added };
}

function readChunk(reader: Reader): Chunk {
  const turn = reader.number();
  const packed = reader.number();
  const tokens = packed >>> 1;
  if (tokens < 1 || tokens > CHUNK_TOKENS_MAX) throw refused(`a chunk of ${tokens} tokens`);
  const ids = reader.ids(tokens);
  return { turn, ids, ...(packed % 2 === 1 ? { actDigest: reader.word() } : {}) };
}

/** Refuses, before anything is unfolded, prompts that would be too long or begin like nothing. */
function measure(raws: readonly RawTurn[], made: readonly Uint32Array[]): void {
  const lengths: number[] = [];
  let total = 0;
  for (const [place, { from, shared, added }] of raws.entries()) {
    const length = from === 0 ? 0 : lengths[from - 1];
    if (length === undefined || shared > length) throw refused("a beginning that is not there");
    total += shared + added.length;
    if (total > PROMPT_IDS_MAX) throw refused(`prompts of more than ${PROMPT_IDS_MAX} ids`);
    lengths.push(shared + added.length + made[place]!.length);
  }
}

/** Turns with their whole prompts, whose beginnings earlier turns hold. */
function unfolded(raws: readonly RawTurn[], chunks: readonly Chunk[]): Turn[] {
  const made = outputs(raws.length, chunks);
  measure(raws, made);
  const texts: Uint32Array[] = [];
  return raws.map(({ from, shared, added, seed, ...turn }, place) => {
    const text = texts[from - 1] ?? new Uint32Array(0);
    const promptIds = joinedIds([text.subarray(0, shared), added]);
    texts.push(joinedIds([promptIds, made[place]!]));
    return { ...turn, promptIds, seed: seedOf(seed, turn.turnNo, promptIds) };
  });
}

/** What `bytes` say. */
export function decodeBlob(bytes: Uint8Array): Blob {
  const reader = new Reader(bytes);
  if (!isEqual(reader.take(MAGIC.length), MAGIC)) throw refused("no blob of version 1");
  reader.isNarrow = reader.flag();
  const chainId = reader.wide();
  const marketplace = reader.take(20);
  const jobId = reader.wide();
  const seq = reader.number();
  const tables: Tables = {
    specs: reader.many(65, () => readSpecs(reader)),
    settings: reader.many(32, () => readSettings(reader)),
  };
  const raws = reader.many(38, () => readTurn(reader, tables));
  const chunks = reader.many(4, () => readChunk(reader));
  if (reader.left > 0) throw refused(`${reader.left} bytes behind the end`);
  const turns = unfolded(raws, chunks);
  const blob = { chainId, marketplace, jobId, seq, turns, chunks };
  if (!isEqual(encodeBlob(blob), bytes)) throw refused("not the one form of its content");
  return blob;
}
