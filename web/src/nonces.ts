// The host's nonces and the seeds made from them.
//
// A link is checked against the commitment that was told before the chain's first turn. Never
// knows the secret that the chains come from.

import { isEqual, sized } from "./bytes.js";
import { H } from "./preimage.js";

/** Links of a chain, hence turns that one commitment binds. */
export const CHAIN_LINKS = 1024;

/** The chain, and the link in it, of a turn's host nonce. */
export function linkOf(turnNo: number): { chain: number; link: number } {
  return { chain: Math.floor(turnNo / CHAIN_LINKS), link: turnNo % CHAIN_LINKS };
}

function hashed(word: Uint8Array, times: number): Uint8Array {
  let found = sized(word, 32, "hostNonce");
  for (let i = 0; i < times; i++) found = H(found);
  return found;
}

/** The commitment that a turn's host nonce leads to. */
export function commitmentOf(turnNo: number, hostNonce: Uint8Array): Uint8Array {
  return hashed(hostNonce, linkOf(turnNo).link + 1);
}

/** A turn and the nonce that the host told for it. */
export interface ToldNonce {
  turnNo: number;
  hostNonce: Uint8Array;
}

/**
 * Turn numbers whose nonce is no link of its chain: of one another's, and of the commitment where
 * `commitments` has one, by the chain's number.
 */
export function strayNonces(
  told: readonly ToldNonce[],
  commitments: ReadonlyMap<number, Uint8Array>,
): number[] {
  const chains = new Map<number, ToldNonce[]>();
  for (const nonce of told) {
    const { chain } = linkOf(nonce.turnNo);
    const others = chains.get(chain) ?? [];
    others.push(nonce);
    chains.set(chain, others);
  }
  const stray: number[] = [];
  for (const [chain, nonces] of chains) {
    nonces.sort((a, b) => a.turnNo - b.turnNo);
    // What the next nonce must lead to, and the number of the turn that says so.
    let known = commitments.get(chain);
    let from = chain * CHAIN_LINKS - 1;
    for (const { turnNo, hostNonce } of nonces) {
      const leads = known === undefined || isEqual(hashed(hostNonce, turnNo - from), known);
      if (!leads) stray.push(turnNo);
      if (leads) [known, from] = [hostNonce, turnNo];
    }
  }
  return stray;
}
