// Delegations and vouchers for the tests, signed as a client signs them: docs/spec/proof.md,
// "Vouchers". Relies on ethers for EIP-712, so that the contract is held against another program.
// It must never decide whether something is valid: tests do.
"use strict";

const { ethers } = require("../chain.js");
const { MODEL } = require("./support.js");

const TYPES = {
  Delegation: [
    { name: "jobId", type: "uint256" },
    { name: "sessionKey", type: "address" },
    { name: "host", type: "address" },
    { name: "model", type: "bytes32" },
    { name: "price", type: "uint256" },
    { name: "cap", type: "uint64" },
    { name: "expiry", type: "uint64" },
  ],
  Voucher: [
    { name: "jobId", type: "uint256" },
    { name: "cumTokens", type: "uint64" },
    { name: "seq", type: "uint32" },
    { name: "root", type: "bytes32" },
    { name: "model", type: "bytes32" },
  ],
};
const CHAIN_ID = 31337n;
const ORDER = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141n;
/** Seconds of validity that a test's delegation has by default, from its making. */
const VALID = 86_400n;

/** Numbers of the reasons, in the order of the page. */
const numbered = (...names) => Object.fromEntries(names.map((name, at) => [name, at + 1]));
const VOUCHER_FAULT = numbered(
  "SessionNotActive", "NotHost", "NotVoucherSession", "NoDelegation", "Expired", "AlreadyPaid",
  "BelowMinimum", "AboveCap", "AboveDeposit", "MalformedSignature", "WrongSigner",
);
const DELEGATION_FAULT = numbered(
  "SessionNotActive", "NotHost", "NotVoucherSession", "WrongHost", "WrongPrice", "InvalidKey",
  "Expired", "NotLater", "WrongSigner",
);
const refusedVoucher = (id, fault) => `VoucherRefused(${id}, ${fault})`;
const refusedDelegation = (id, fault) => `DelegationRefused(${id}, ${fault})`;

/** A session key, the same for the same number: { address, sign(digest) }. */
function sessionKey(n = 0) {
  const key = new ethers.SigningKey(ethers.id(`session key ${n}`));
  return { address: ethers.computeAddress(key), sign: (d) => key.sign(d).serialized };
}

/** What a key signs: the EIP-712 digest. */
function digest(w, type, value, domain = {}) {
  return ethers.TypedDataEncoder.hash(
    {
      name: "Tally",
      version: "1",
      chainId: CHAIN_ID,
      verifyingContract: w.addresses.job_marketplace,
      ...domain,
    },
    { [type]: TYPES[type] },
    value,
  );
}

/** Fields in the order of their type: the form in which a call takes them. */
const ordered = (type, value) => TYPES[type].map(({ name }) => value[name]);

/**
 * A delegation of a session, signed by the role `by`: [fields, signature], as calls take them.
 * `told` changes what is sent after the signing.
 */
function delegation(w, id, { by = "depositor", domain, told = {}, ...fields } = {}) {
  const value = {
    jobId: id,
    sessionKey: sessionKey().address,
    host: w.host,
    model: MODEL,
    price: w.price,
    cap: 1_000_000n,
    expiry: w.clock + VALID,
    ...fields,
  };
  const key = new ethers.SigningKey(w.accounts[by].private_key);
  const signature = key.sign(digest(w, "Delegation", value, domain)).serialized;
  return [ordered("Delegation", { ...value, ...told }), signature];
}

/** A voucher: [jobId, cumTokens, seq, root, signature], as calls take it. See `delegation`. */
function voucher(w, id, cumTokens, { key = sessionKey(), domain, told = {}, ...fields } = {}) {
  const seq = BigInt.asUintN(32, cumTokens / 100n);
  const root = ethers.id(`root ${id} ${cumTokens}`);
  const value = { jobId: id, cumTokens, seq, root, model: MODEL, ...fields };
  const signature = key.sign(digest(w, "Voucher", value, domain));
  const sent = { ...value, signature, ...told };
  return [sent.jobId, sent.cumTokens, sent.seq, sent.root, sent.signature];
}

/** The same voucher as the calls that take many of them want it: r, s and v one by one. */
function unpacked([jobId, cumTokens, seq, root, signature]) {
  const { r, s, v } = parts(signature);
  return [jobId, cumTokens, seq, root, r, s, v];
}

/** 65 bytes in their parts, and back, so that a test can change one. */
const parts = (signature) => ({
  r: ethers.dataSlice(signature, 0, 32),
  s: ethers.dataSlice(signature, 32, 64),
  v: Number(ethers.dataSlice(signature, 64)),
});
const joined = ({ r, s, v }) => ethers.concat([r, s, ethers.toBeHex(v)]);

/** Every way in which 65 bytes are not the one form of a signature: { what: bytes }. */
function malformed(good) {
  const p = parts(good);
  return {
    "no bytes": "0x",
    "64 bytes": ethers.dataSlice(good, 0, 64),
    "66 bytes": ethers.concat([good, "0x00"]),
    "v 26": joined({ ...p, v: 26 }),
    "v 29": joined({ ...p, v: 29 }),
    "v 0 or 1": joined({ ...p, v: p.v - 27 }),
    // It recovers to the same key.
    "the twin": joined({ r: p.r, s: ethers.toBeHex(ORDER - BigInt(p.s), 32), v: 55 - p.v }),
    "s just above half the order": joined({ ...p, s: ethers.toBeHex(ORDER / 2n + 1n, 32) }),
  };
}

/** Signatures in the right form that are nobody's, or another's. */
function foreign(good) {
  const p = parts(good);
  return {
    zeros: joined({ r: ethers.ZeroHash, s: ethers.ZeroHash, v: 27 }),
    "the other v": joined({ ...p, v: 55 - p.v }),
    "s at half the order": joined({ ...p, s: ethers.toBeHex(ORDER / 2n, 32) }),
    "r above the order": joined({ ...p, r: ethers.toBeHex(ORDER + 1n, 32) }),
  };
}

/** Opens a voucher session and registers a delegation; resolves with its id. */
async function vouchered(w, terms = {}, fields = {}) {
  const { id } = await w.open({ vouchers: true, ...terms });
  await w.ok(w.host, "job_marketplace", "registerDelegation", delegation(w, id, fields));
  return id;
}

module.exports = {
  CHAIN_ID, DELEGATION_FAULT, VALID, VOUCHER_FAULT, delegation, digest, foreign, malformed,
  refusedDelegation, refusedVoucher, sessionKey, unpacked, voucher, vouchered,
};
