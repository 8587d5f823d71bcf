// Who signed a digest, by the curve of Ethereum's keys.
//
// Refuses what a contract must refuse: a high s, since everyone can turn one signature into its
// twin, and a v that is not 27 or 28. Never holds a private key.

import { secp256k1 } from "@noble/curves/secp256k1";
import { ClaimError, sized } from "./bytes.js";
import { H } from "./preimage.js";

/** The address whose key signed `digest`. `signature` is r | s | v. */
export function recoverSigner(digest: Uint8Array, signature: Uint8Array): Uint8Array {
  const v = sized(signature, 65, "signature")[64]!;
  if (v !== 27 && v !== 28) throw new ClaimError("bad_signature", `v is ${v}, wanted 27 or 28`);
  try {
    const compact = secp256k1.Signature.fromCompact(signature.slice(0, 64));
    if (compact.hasHighS()) throw new ClaimError("bad_signature", "s is in the upper half");
    const key = compact.addRecoveryBit(v - 27).recoverPublicKey(sized(digest, 32, "digest"));
    return H(key.toRawBytes(false).slice(1)).slice(12);
  } catch (why) {
    if (why instanceof ClaimError) throw why;
    throw new ClaimError("bad_signature", "no key signs like this");
  }
}
