// Compares this verifier with the node, claim by claim; scripts/test-web.sh runs it.
//
//   … | node dist/node/lines.js SEED MUTANTS JUDGED VERDICTS
//
// Reads claims that the node's code made, one JSON a line, and holds each against its line. Writes
// blobs for the node's code to judge (as they came, mutated, and of this side's own making) to
// JUDGED, what this side says of them to VERDICTS, and a summary to standard output.

import { closeSync, openSync, writeSync } from "node:fs";
import { createInterface } from "node:readline";
import type { Blob } from "../blob/types.js";
import { outputs, rootOf } from "../blob/types.js";
import { decodeBlob } from "../blob/decode.js";
import { encodeBlob } from "../blob/encode.js";
import { ClaimError, hex, isEqual, unhex } from "../bytes.js";
import { Dice, mutated, randomBlob } from "../test/random.js";
import type { Step } from "../transcript.js";
import { closedChunks } from "../transcript.js";
import { FLAG, decodeProof, fromContentId, toContentId } from "../proof.js";
import { merits, verify } from "../verify.js";

/** What the node's code says of a claim. */
interface Line {
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
  cuts: number[];
  steps: [string, number, number?][];
}

/** The history of `line` with the ids that its blob holds, as far as it holds them. */
function history(line: Line, blob: Blob): Step[] {
  const made = outputs(blob.turns.length, blob.chunks);
  const left = new Map(blob.turns.map(({ turnNo }, place) => [turnNo, [...made[place]!]]));
  return line.steps.map(([kind, turnNo, count = 0]): Step => {
    if (kind !== "ids") return kind === "end" ? { kind, turnNo } : { kind: "start", turnNo };
    const ids = left.get(turnNo)?.splice(0, count) ?? [];
    while (ids.length < count) ids.push(0);
    return { kind, turnNo, ids };
  });
}

/** What this side sees otherwise than the line says. */
function differences(line: Line): string[] {
  const found: string[] = [];
  const same = (what: string, wanted: unknown, seen: unknown): void => {
    if (wanted !== seen) found.push(`${what}: ${wanted} there, ${seen} here`);
  };
  const proof = unhex(line.proof);
  const verdict = verify(unhex(line.blob), proof, {
    chainId: BigInt(line.chain_id),
    marketplace: unhex(line.marketplace),
    signer: unhex(line.signer),
    commitments: new Map(line.commitments.map(([chain, link]) => [chain, unhex(link)])),
  });
  same("honest", line.honest, verdict.ok);
  if (line.honest !== verdict.ok) found.push(...verdict.reasons);
  found.push(...verdict.reasons.filter((reason) => !reason.startsWith("seed_differs")));
  same("root", line.root, verdict.root && hex(verdict.root));
  same("tokens", line.tokens, verdict.tokens);
  same("model", line.model, verdict.model && hex(verdict.model));
  const blob = decodeBlob(unhex(line.blob));
  const { isCanonical, isDerived } = merits(blob);
  same("canonical", (decodeProof(proof).flags & FLAG.canonical) !== 0, isCanonical);
  same("derived", (decodeProof(proof).flags & FLAG.nonceDerived) !== 0, isDerived);
  const { proofHash, proofCid } = toContentId(proof);
  same("content id", hex(proof), hex(fromContentId(proofHash, proofCid)));
  const closed = closedChunks(history(line, blob), line.tokens, line.cuts);
  const shape = (chunks: { turnNo: number; ids: Uint32Array }[]): string =>
    chunks.map(({ turnNo, ids }) => `${turnNo}:${ids.join(" ")}`).join(",");
  const told = blob.chunks.map(({ turn, ids }) => ({ turnNo: blob.turns[turn]!.turnNo, ids }));
  same("chunks", shape(told), shape(closed));
  return found;
}

/** What this side says of bytes, in the words of the node's `judge`. */
function judged(bytes: Uint8Array): string {
  try {
    const { root, top } = rootOf(decodeBlob(bytes));
    return `${hex(root)} ${top.tokens}`;
  } catch (why) {
    if (why instanceof ClaimError) return "no";
    throw why;
  }
}

async function main(seed: number, mutants: number, judgedPath: string, verdictsPath: string) {
  const [toJudge, verdicts] = [openSync(judgedPath, "w"), openSync(verdictsPath, "w")];
  const dice = new Dice(seed);
  const sums = { claims: 0, honest: 0, own: 0, mutants: 0, mutants_accepted: 0, differ: 0 };
  const judge = (bytes: Uint8Array): string => {
    const verdict = judged(bytes);
    writeSync(toJudge, `${hex(bytes).slice(2)}\n`);
    writeSync(verdicts, `${verdict}\n`);
    return verdict;
  };
  for await (const text of createInterface({ input: process.stdin })) {
    const line = JSON.parse(text) as Line;
    const found = differences(line);
    if (found.length > 0) process.stderr.write(`claim ${sums.claims}: ${found.join("; ")}\n`);
    sums.differ += found.length > 0 ? 1 : 0;
    sums.claims += 1;
    sums.honest += line.honest ? 1 : 0;
    const own = encodeBlob(randomBlob(dice));
    judge(own);
    sums.own += 1;
    for (let i = 0; i < mutants; i++) {
      const bytes = i % 2 === 0 ? unhex(line.blob) : own;
      const other = mutated(dice, bytes);
      const verdict = judge(other);
      sums.mutants += 1;
      sums.mutants_accepted += verdict === "no" || isEqual(other, bytes) ? 0 : 1;
    }
  }
  closeSync(toJudge);
  closeSync(verdicts);
  process.stdout.write(`${JSON.stringify({ ok: sums.differ === 0, seed, ...sums })}\n`);
  return sums.claims > 0 && sums.differ === 0 ? 0 : 1;
}

const [seed = "", mutants = "", judgedPath = "", verdictsPath = ""] = process.argv.slice(2);
process.exitCode = await main(Number(seed), Number(mutants), judgedPath, verdictsPath);
