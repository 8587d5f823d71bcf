// Blobs come back from their bytes, and no other bytes say the same.

import assert from "node:assert/strict";
import { test } from "node:test";
import { decodeBlob } from "../blob/decode.js";
import { encodeBlob, leb } from "../blob/encode.js";
import type { Blob, Turn } from "../blob/types.js";
import { rootOf } from "../blob/types.js";
import { ClaimError, concat, hex, isEqual } from "../bytes.js";
import { Dice, mutated, randomBlob } from "./random.js";

const SEED = 20_261_122;
const BLOBS = 200;
const MUTANTS = 10_000;

/** What a root covers; the rest is told and compared elsewhere. */
function hashed(blob: Blob): unknown {
  const turns = blob.turns.map(({ seed, end: _, ...turn }) => ({ ...turn, seed: seed.seed }));
  return { jobId: blob.jobId, seq: blob.seq, turns, chunks: blob.chunks };
}

/** The blob in `bytes`; nothing where it is refused, as it must be, by a `ClaimError`. */
function read(bytes: Uint8Array): Blob | undefined {
  try {
    return decodeBlob(bytes);
  } catch (why) {
    assert.ok(why instanceof ClaimError, `${String(why)} for ${hex(bytes)}`);
    return undefined;
  }
}

test("a blob comes back from its bytes", () => {
  const dice = new Dice(SEED);
  for (let i = 0; i < BLOBS; i++) {
    const blob = randomBlob(dice);
    const again = decodeBlob(encodeBlob(blob));
    assert.deepEqual(again, blob, `seed ${SEED}, blob ${i}`);
  }
});

test("a changed blob is refused or has another root", (t) => {
  const dice = new Dice(SEED + 1);
  let accepted = 0;
  let blob = randomBlob(dice);
  let bytes = encodeBlob(blob);
  let root = hex(rootOf(blob).root);
  for (let i = 0; i < MUTANTS; i++) {
    if (i % 50 === 49) {
      blob = randomBlob(dice);
      bytes = encodeBlob(blob);
      root = hex(rootOf(blob).root);
    }
    const other = mutated(dice, bytes);
    const found = read(other);
    if (found === undefined || isEqual(bytes, other)) continue;
    accepted += 1;
    // One content has one form: these other bytes say something else.
    if (hex(rootOf(found).root) === root) {
      assert.deepEqual(hashed(found), hashed(blob), `seed ${SEED + 1}, mutant ${i}`);
    }
  }
  t.diagnostic(`seed ${SEED + 1}: ${MUTANTS} mutants, ${accepted} are blobs of other content`);
  assert.ok(accepted > 100, `${accepted}`);
});

test("random bytes are refused and nothing else happens", () => {
  const dice = new Dice(SEED + 2);
  const head = encodeBlob(randomBlob(dice)).slice(0, 6);
  for (let i = 0; i < 2_000; i++) {
    const noise = dice.bytes(dice.below(300));
    assert.equal(read(noise), undefined);
    read(Uint8Array.of(...head, ...noise));
  }
});

test("every beginning of a blob is refused", () => {
  const bytes = encodeBlob(randomBlob(new Dice(SEED + 3)));
  for (let size = 0; size < bytes.length; size++) {
    assert.equal(read(bytes.slice(0, size)), undefined, `${size} of ${bytes.length}`);
  }
});

const WORD = new Uint8Array(32).fill(7);

function turn(changes: Partial<Turn> = {}): Turn {
  return {
    turnNo: 0,
    specs: { modelSpec: WORD, tokenizerSpec: WORD, engineSpec: 1 },
    settings: { decodeSpec: WORD },
    seed: { isOwn: true, seed: WORD },
    end: "stop",
    promptIds: Uint32Array.of(1, 2, 3),
    ...changes,
  };
}

function small(turns: Turn[], ids = Uint32Array.of(4, 5)): Blob {
  const chunks = turns.map((_, place) => ({ turn: place, ids }));
  return { chainId: 1n, marketplace: WORD.slice(12), jobId: 7n, seq: 1, turns, chunks };
}

test("a blob of one short turn has the bytes that the text says", () => {
  const word = "07".repeat(32);
  const wanted = [
    "0x544c59420101", // magic, version, narrow
    `01${"07".repeat(20)}0701`, // chain, marketplace, job, seq
    `01${word}${word}01`, // specs
    `0100${word}`, // settings
    `01000000${"00"}${word}01`, // a turn: number, places, seed, end
    "0003010002000300", // no shared beginning, three ids
    "010004" + "04000500", // a chunk of two tokens, without a digest
  ].join("");
  assert.equal(hex(encodeBlob(small([turn()]))), wanted);
});

test("content without a form is not written", () => {
  const nonce = { host: WORD, user: WORD, isTold: false };
  const settings = {
    ...{ temperature: 1, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, maxTokens: 1, stop: [] },
    ...{ frequencyPenalty: 0, presencePenalty: 0, ignoreEos: false },
  };
  const logitBias = (...ids: number[]) => ids.map((id) => [id, 1] as const);
  const bad: Blob[] = [
    small([]),
    { ...small([turn()]), chunks: [] },
    { ...small([turn(), turn({ turnNo: 1 })]), chunks: [{ turn: 0, ids: Uint32Array.of(1) }] },
    small([turn()], new Uint32Array(0)),
    small([turn()], new Uint32Array(33)),
    small([turn({ seed: { isOwn: true, seed: WORD, nonces: nonce } })]),
    small([turn({ settings: { ...settings, logitBias: logitBias(2, 1) } })]),
    small([turn({ settings: { ...settings, logitBias: logitBias(1, 1) } })]),
    small([turn({ settings: { ...settings, logitBias: [[1, 0]] } })]),
    small([turn({ settings: { ...settings, logitBias: [], temperature: Number.NaN } })]),
    small([turn({ settings: { ...settings, logitBias: [], temperature: 0.1 } })]),
    small([turn(), turn()]),
    small([turn({ turnNo: 2 ** 32 })]),
    small([turn({ turnNo: -1 })]),
    { ...small([turn()]), jobId: 2n ** 64n },
    { ...small([turn()]), jobId: 0n },
    { ...small([turn()]), marketplace: WORD },
  ];
  for (const [i, blob] of bad.entries()) {
    assert.throws(() => encodeBlob(blob), ClaimError, `case ${i}`);
  }
  encodeBlob(small([turn({ settings: { ...settings, logitBias: logitBias(1, 2) } })]));
  encodeBlob(small([turn()], new Uint32Array(32)));
});

test("what repeated prompts unfold to is bounded", () => {
  const bytes = encodeBlob(small([turn({ promptIds: new Uint32Array(60_000) })]));
  // Turn count, then one turn as above, then one chunk: turns that repeat it go in between.
  const head = bytes.length - 7 - 120_000 - 42;
  const seed = [0, ...WORD];
  const repeats = Array.from({ length: 1_200 }, (_, i) => {
    return Uint8Array.of(...leb(i + 1), 0, 0, ...seed, 1, ...leb(i + 1), ...leb(60_000), 0);
  });
  const of = (turns: number): Uint8Array =>
    concat([
      bytes.slice(0, head),
      leb(1 + turns),
      bytes.slice(head + 1, -7),
      ...repeats.slice(0, turns),
      Uint8Array.of(1, ...leb(turns), 4, 4, 0, 5, 0),
    ]);
  assert.equal(decodeBlob(of(3)).turns.length, 4);
  assert.throws(() => decodeBlob(of(1_200)), /prompts of more than/);
});
