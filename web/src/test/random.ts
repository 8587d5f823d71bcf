// Random jobs from a seed, built without looking at how the node builds its own.

import type { Blob, Seed, Settings, Turn } from "../blob/types.js";
import { ENDS, joinedIds } from "../blob/types.js";
import { H, derivedSeed, promptDigest } from "../preimage.js";
import { be, concat } from "../bytes.js";
import type { Step } from "../transcript.js";
import { closedChunks } from "../transcript.js";

/** Random numbers of one seed (mulberry32). */
export class Dice {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** 32 random bits. */
  bits(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = this.#state;
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  }

  below(end: number): number {
    return Math.floor((this.bits() / 0x1_0000_0000) * end);
  }

  oneIn(chances: number): boolean {
    return this.below(chances) === 0;
  }

  pick<T>(things: readonly T[]): T {
    return things[this.below(things.length)]!;
  }

  bytes(size: number): Uint8Array {
    const bytes = new Uint8Array(size);
    for (let i = 0; i < size; i++) bytes[i] = this.bits() & 0xff;
    return bytes;
  }

  /** A number of up to `bits` bits, small ones as often as large ones. */
  wide(bits: number): bigint {
    const value = (BigInt(this.bits()) << 32n) | BigInt(this.bits());
    return value >> BigInt(64 - bits + this.below(bits));
  }
}

function randomSettings(dice: Dice): Settings {
  if (dice.oneIn(5)) return { decodeSpec: H(be(dice.below(3), 4)) };
  const ids = new Set(Array.from({ length: dice.oneIn(3) ? dice.below(4) : 0 }, () => dice.bits()));
  const ascending = [...ids].sort((a, b) => a - b);
  const stops = ["\n\n", "", "Ende 🦉", "\ufeffstop", "a".repeat(200)];
  return {
    temperature: dice.below(8) / 4,
    topK: dice.pick([0, 40, 0xffff_ffff]),
    topP: dice.pick([1, Math.fround(0.9)]),
    minP: dice.pick([0, Math.fround(1e-40)]),
    repetitionPenalty: Math.fround(1 + dice.below(10) / 10),
    maxTokens: dice.below(2000),
    stop: Array.from({ length: dice.below(3) }, () => dice.pick(stops)),
    frequencyPenalty: dice.pick([0, 0.5]),
    presencePenalty: dice.pick([0, -0.25]),
    logitBias: ascending.map((id) => [id, dice.pick([-100, 2.5, Math.fround(0.1)])] as const),
    ignoreEos: dice.oneIn(5),
  };
}

function randomSeed(dice: Dice, turnNo: number, promptIds: Uint32Array): Seed {
  const isOwn = dice.oneIn(4);
  const seed = dice.bytes(32);
  if (dice.oneIn(5)) return { isOwn, seed };
  const isTold = !dice.oneIn(3);
  const user = isTold ? dice.bytes(32) : promptDigest(promptIds);
  const host = dice.bytes(32);
  const isRule = !isOwn && !dice.oneIn(5);
  const ruled = isRule ? derivedSeed(host, user, turnNo) : seed;
  return { isOwn, seed: ruled, nonces: { host, user, isTold } };
}

/** A random job's blob at a random claim. */
export function randomBlob(dice: Dice): Blob {
  const idEnd = dice.oneIn(3) ? 0x1_0000_0000 : 49_152;
  const some = (count: number): number[] => Array.from({ length: count }, () => dice.below(idEnd));
  const turns: Turn[] = [];
  const texts: Uint32Array[] = [];
  const models = Array.from({ length: 1 + dice.below(3) }, () => dice.bytes(32));
  const settings = Array.from({ length: 1 + dice.below(3) }, () => randomSettings(dice));
  const steps: Step[] = [];
  const live: { turnNo: number; left: number }[] = [];
  const numbers = new Set<number>();
  let tokens = 0;
  const wanted = 1 + dice.below(24);
  while (turns.length < wanted || live.length > 0 || tokens === 0) {
    if (turns.length < wanted || tokens === 0) {
      const turnNo = dice.oneIn(20) ? dice.bits() : turns.length;
      if (!numbers.has(turnNo)) {
        numbers.add(turnNo);
        const text = texts.length > 0 && !dice.oneIn(3) ? dice.pick(texts) : new Uint32Array(0);
        const kept = dice.oneIn(2) ? text : text.subarray(0, dice.below(text.length + 1));
        const promptIds = joinedIds([kept, Uint32Array.from(some(dice.below(40)))]);
        const specs = {
          modelSpec: dice.pick(models),
          tokenizerSpec: H(be(1, 1)),
          engineSpec: dice.below(2),
        };
        const seed = randomSeed(dice, turnNo, promptIds);
        const how = dice.pick(settings);
        turns.push({ turnNo, specs, settings: how, seed, end: dice.pick(ENDS), promptIds });
        texts.push(promptIds);
        steps.push({ kind: "start", turnNo });
        live.push({ turnNo, left: dice.below(100) });
      }
    }
    for (let go = dice.below(6); go > 0 && live.length > 0; go--) {
      const at = dice.below(live.length);
      const turn = live[at]!;
      const ids = some(Math.min(turn.left, 1 + dice.below(40)));
      const states = dice.oneIn(4) ? [] : ids.map(() => dice.bytes(32));
      steps.push({ kind: "ids", turnNo: turn.turnNo, ids, states });
      const place = turns.findIndex(({ turnNo }) => turnNo === turn.turnNo);
      texts[place] = joinedIds([texts[place]!, Uint32Array.from(ids)]);
      turn.left -= ids.length;
      tokens += ids.length;
      if (turn.left === 0) {
        live.splice(at, 1);
        steps.push({ kind: "end", turnNo: turn.turnNo });
      }
    }
  }
  const end = 1 + dice.below(tokens);
  const cuts = Array.from({ length: dice.below(4) }, () => 1 + dice.below(end));
  const chunks = closedChunks(steps, end, cuts).map(({ turnNo, ...chunk }) => {
    return { turn: turns.findIndex((turn) => turn.turnNo === turnNo), ...chunk };
  });
  const last = Math.max(...chunks.map(({ turn }) => turn));
  const [chainId, marketplace, jobId] = [dice.wide(64), dice.bytes(20), dice.wide(64) || 1n];
  const seq = 1 + dice.below(9);
  return { chainId, marketplace, jobId, seq, turns: turns.slice(0, last + 1), chunks };
}

/** `bytes` with a few changes, a piece left out, put in twice, or cut short. */
export function mutated(dice: Dice, bytes: Uint8Array): Uint8Array {
  const at = dice.below(bytes.length);
  const size = 1 + dice.below(40);
  const [head, tail] = [bytes.slice(0, at), bytes.slice(at)];
  switch (dice.below(6)) {
    case 0:
      return head;
    case 1:
      return concat([head, tail.slice(size)]);
    case 2:
      return concat([head, tail.slice(0, size), tail]);
    case 3:
      return concat([bytes, dice.bytes(size)]);
    case 4: {
      const copy = bytes.slice();
      copy[at] = dice.bits() & 0xff;
      return copy;
    }
    default: {
      // Headers and tables stand in front, and a bit there says most.
      const copy = bytes.slice();
      const where = dice.oneIn(2) ? at : dice.below(Math.min(bytes.length, 260));
      copy[where]! ^= 1 << dice.below(8);
      return copy;
    }
  }
}
