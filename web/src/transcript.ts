// A job's transcript: turns, chunks, the sum tree over them, the root.
//
// `Transcript` grows chunk by chunk, as a page receives them, and knows count and root at any
// moment; `closedChunks` finds where chunks close from a job's history. Never keeps token ids of
// chunks that are closed.

import { ClaimError } from "./bytes.js";
import type { SumNode, TurnHeader } from "./preimage.js";
import { H, ZERO_WORD, chunkHash, joined, rootHash, turnHash } from "./preimage.js";

/** Tokens of a full chunk. */
export const CHUNK_TOKENS_MAX = 32;

/** A tree over leaves that only ever come behind the others; holds one node a level. */
export class SumTree {
  // Whole subtrees from left to right, each of a power of two of leaves, sizes falling.
  #peaks: { node: SumNode; leaves: number }[] = [];
  #tokens = 0;

  get tokens(): number {
    return this.#tokens;
  }

  push(leaf: SumNode): void {
    let peak = { node: leaf, leaves: 1 };
    for (let last = this.#peaks.at(-1); last?.leaves === peak.leaves; last = this.#peaks.at(-1)) {
      peak = { node: joined(last.node, peak.node), leaves: 2 * peak.leaves };
      this.#peaks.pop();
    }
    this.#peaks.push(peak);
    this.#tokens += leaf.tokens;
  }

  /** The top: an odd node of a level is promoted as it is, hence joined from the right. */
  top(): SumNode {
    const [last, ...rest] = this.#peaks.map((peak) => peak.node).reverse();
    if (last === undefined) throw new ClaimError("no_tokens", "a root covers one token at least");
    return rest.reduce((right, left) => joined(left, right), last);
  }
}

/** What a turn knows of its chunks. */
interface OpenTurn {
  hash: Uint8Array;
  chunks: number;
  tokens: number;
}

/** A job's chunks in the order in which they closed. */
export class Transcript {
  readonly jobId: bigint;
  #tree = new SumTree();
  #turns: OpenTurn[] = [];

  constructor(jobId: bigint) {
    this.jobId = jobId;
  }

  /** Tokens of all chunks so far. */
  get tokens(): number {
    return this.#tree.tokens;
  }

  /** Begins a turn, in the order of the ledger; its place is for `push`. */
  begin(header: TurnHeader): number {
    const prevTurn = this.#turns.at(-1)?.hash ?? ZERO_WORD;
    this.#turns.push({ hash: turnHash(this.jobId, header, prevTurn), chunks: 0, tokens: 0 });
    return this.#turns.length - 1;
  }

  /** Adds a closed chunk of the turn in `place`; no digest where a state's is missing. */
  push(place: number, outIds: Uint32Array, actDigest?: Uint8Array): void {
    const turn = this.#turns[place];
    if (turn === undefined) throw new ClaimError("no_turn", `no turn has place ${place}`);
    if (outIds.length < 1 || outIds.length > CHUNK_TOKENS_MAX) {
      throw new ClaimError("bad_chunk", `a chunk of ${outIds.length} tokens`);
    }
    const at = { turn: turn.hash, k: turn.chunks, pos0: turn.tokens };
    const hash = chunkHash(at, outIds, actDigest ?? ZERO_WORD);
    this.#tree.push({ hash, tokens: outIds.length });
    turn.chunks += 1;
    turn.tokens += outIds.length;
  }

  top(): SumNode {
    return this.#tree.top();
  }

  root(seq: number): Uint8Array {
    return rootHash(this.jobId, seq, this.top());
  }
}

/** One entry of a job's ledger, as far as the transcript sees it. */
export type Step =
  | { kind: "start"; turnNo: number }
  | { kind: "ids"; turnNo: number; ids: readonly number[]; states?: readonly Uint8Array[] }
  | { kind: "end"; turnNo: number };

/** A chunk that closed. */
export interface ClosedChunk {
  turnNo: number;
  ids: Uint32Array;
  actDigest?: Uint8Array;
}

interface OpenChunk {
  ids: number[];
  states: Uint8Array[];
}

/** The chunks of the first `tokens` tokens where claims were cut at `cuts`, as they closed. */
export function closedChunks(
  steps: readonly Step[],
  tokens: number,
  cuts: readonly number[],
): ClosedChunk[] {
  const closed: ClosedChunk[] = [];
  const open = new Map<number, OpenChunk>();
  const cut = new Set([...cuts, tokens]);
  const close = (turnNo: number): void => {
    const chunk = open.get(turnNo);
    open.delete(turnNo);
    if (chunk === undefined) return;
    const isWhole = chunk.states.length === chunk.ids.length;
    const ids = Uint32Array.from(chunk.ids);
    closed.push({ turnNo, ids, ...(isWhole ? { actDigest: H(...chunk.states) } : {}) });
  };
  let count = 0;
  for (const step of steps) {
    if (count === tokens) break;
    if (step.kind === "end") close(step.turnNo);
    if (step.kind !== "ids") continue;
    for (const [i, id] of step.ids.entries()) {
      const chunk = open.get(step.turnNo) ?? { ids: [], states: [] };
      open.set(step.turnNo, chunk);
      chunk.ids.push(id);
      const state = step.states?.[i];
      if (state !== undefined) chunk.states.push(state);
      count += 1;
      if (chunk.ids.length === CHUNK_TOKENS_MAX) close(step.turnNo);
      if (cut.has(count)) [...open.keys()].sort((a, b) => a - b).forEach(close);
      if (count === tokens) break;
    }
  }
  if (count < tokens) throw new ClaimError("no_tokens", `${count} tokens, not ${tokens}`);
  return closed;
}
