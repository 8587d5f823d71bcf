// What a page imports: the check of a claim, and the parts that it is made of.

export { ClaimError, hex, unhex } from "./bytes.js";
export { decodeBlob } from "./blob/decode.js";
export { encodeBlob } from "./blob/encode.js";
export type { Blob, Chunk, End, Seed, Settings, Specs, Turn } from "./blob/types.js";
export { headerOf, rootOf } from "./blob/types.js";
export type { Delegation, Domain, Voucher } from "./eip712.js";
export { delegationDigest, voucherDigest } from "./eip712.js";
export { commitmentOf, linkOf, strayNonces } from "./nonces.js";
export type { DecodeSettings, TurnHeader } from "./preimage.js";
export { H, decodeSpec, derivedSeed, modelSpec, promptDigest, tokenizerSpec } from "./preimage.js";
export type { Proof } from "./proof.js";
export { FLAG, decodeProof, encodeProof, fromContentId, toContentId } from "./proof.js";
export { recoverSigner } from "./signature.js";
export type { ClosedChunk, Step } from "./transcript.js";
export { SumTree, Transcript, closedChunks } from "./transcript.js";
export type { Expected, Verdict } from "./verify.js";
export { verify } from "./verify.js";
