// Proof bytes, version 1, and the content id that carries them.
//
// Never checks a signature: that is verify.ts. Refuses every length, version, flag and first word
// that is not the one form.

import { ClaimError, be, concat, fromBe, isEqual, sized } from "./bytes.js";
import { leb } from "./blob/encode.js";
import { claimWord } from "./preimage.js";

export const PROOF_BYTES = 145;

/** Bits of a proof's flags. */
export const FLAG = { userVoucher: 1, canonical: 2, final: 4, nonceDerived: 8 } as const;

const FLAGS_ALL = 0x0f;
const VERSION = 1;

export interface Proof {
  flags: number;
  cumTokens: bigint;
  seq: number;
  salt: number;
  root: Uint8Array;
  /** r | s | v. */
  signature: Uint8Array;
}

function refused(words: string): ClaimError {
  return new ClaimError("bad_proof", words);
}

export function encodeProof(proof: Proof): Uint8Array {
  if ((proof.flags & ~FLAGS_ALL) !== 0) throw refused(`flags ${proof.flags}`);
  return concat([
    claimWord(proof.root, proof.salt),
    Uint8Array.of(VERSION, proof.flags),
    be(proof.cumTokens, 8),
    be(proof.seq, 4),
    be(proof.salt, 2),
    proof.root,
    sized(proof.signature, 65, "signature"),
  ]);
}

export function decodeProof(bytes: Uint8Array): Proof {
  if (bytes.length !== PROOF_BYTES) throw refused(`${bytes.length} bytes`);
  const proof: Proof = {
    flags: bytes[33]!,
    cumTokens: fromBe(bytes.subarray(34, 42)),
    seq: Number(fromBe(bytes.subarray(42, 46))),
    salt: Number(fromBe(bytes.subarray(46, 48))),
    root: bytes.slice(48, 80),
    signature: bytes.slice(80),
  };
  if (bytes[32] !== VERSION) throw refused(`version ${bytes[32]}`);
  if ((proof.flags & ~FLAGS_ALL) !== 0) throw refused(`flags ${proof.flags}`);
  if (!isEqual(bytes.subarray(0, 32), claimWord(proof.root, proof.salt))) {
    throw refused("its first word is not the one that root and salt give");
  }
  return proof;
}

const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

function base64url(bytes: Uint8Array): string {
  let text = "";
  for (let at = 0; at < bytes.length; at += 3) {
    const group = bytes.subarray(at, at + 3);
    const bits = (group[0]! << 16) | ((group[1] ?? 0) << 8) | (group[2] ?? 0);
    for (let i = 0; i <= group.length; i++) text += ALPHABET[(bits >> (18 - 6 * i)) & 63];
  }
  return text;
}

function unbase64url(text: string): Uint8Array {
  const bytes: number[] = [];
  let bits = 0;
  let width = 0;
  for (const digit of text) {
    const value = ALPHABET.indexOf(digit);
    if (value < 0) throw refused("a content id with a sign that is not base64url");
    bits = ((bits << 6) | value) & 0xffff;
    width += 6;
    if (width >= 8) {
      width -= 8;
      bytes.push((bits >> width) & 0xff);
    }
  }
  const found = Uint8Array.from(bytes);
  if (base64url(found) !== text) throw refused("a content id with bits behind its end");
  return found;
}

/** A CIDv1 of raw bytes under the identity hash. */
const CID_HEAD = Uint8Array.of(0x01, 0x55, 0x00);

/** `proofHash` and `proofCID` of proof bytes. */
export function toContentId(proof: Uint8Array): { proofHash: Uint8Array; proofCid: string } {
  const content = proof.subarray(32);
  const cid = concat([CID_HEAD, leb(content.length), content]);
  return { proofHash: proof.slice(0, 32), proofCid: `u${base64url(cid)}` };
}

/** Proof bytes of `proofHash` and `proofCID`. */
export function fromContentId(proofHash: Uint8Array, proofCid: string): Uint8Array {
  if (!proofCid.startsWith("u")) throw refused("a content id that is not base64url");
  const cid = unbase64url(proofCid.slice(1));
  const content = cid.subarray(CID_HEAD.length + leb(PROOF_BYTES - 32).length);
  const proof = concat([sized(proofHash, 32, "proofHash"), content]);
  const again = proof.length === PROOF_BYTES ? toContentId(proof).proofCid : "";
  if (again !== proofCid) throw refused("no identity content id of a proof");
  return proof;
}
