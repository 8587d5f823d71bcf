// Digests that wallets sign: the voucher of a count, the delegation to a session key (EIP-712).
//
// Never signs and never recovers; that is signature.ts and the page's wallet.

import { be, concat, sized } from "./bytes.js";
import { H } from "./preimage.js";

/** Where a signature counts: a chain, and the marketplace on it. */
export interface Domain {
  chainId: bigint;
  marketplace: Uint8Array;
}

/** A user's, or a host's, word that a job's count stands at `cumTokens`. */
export interface Voucher {
  jobId: bigint;
  cumTokens: bigint;
  seq: number;
  root: Uint8Array;
  model: Uint8Array;
}

/** A wallet's word that `sessionKey` may sign vouchers of a job. */
export interface Delegation {
  jobId: bigint;
  sessionKey: Uint8Array;
  host: Uint8Array;
  model: Uint8Array;
  price: bigint;
  cap: bigint;
  expiry: bigint;
}

const ascii = (text: string): Uint8Array => new TextEncoder().encode(text);

const DOMAIN_TYPE = H(
  ascii("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
);
const VOUCHER_TYPE = H(
  ascii("Voucher(uint256 jobId,uint64 cumTokens,uint32 seq,bytes32 root,bytes32 model)"),
);
const DELEGATION_TYPE = H(
  ascii(
    "Delegation(uint256 jobId,address sessionKey,address host,bytes32 model," +
      "uint256 price,uint64 cap,uint64 expiry)",
  ),
);

/** A number of `bits` bits, in a word. */
function uint(value: bigint | number, bits: number): Uint8Array {
  return concat([new Uint8Array(32 - bits / 8), be(value, bits / 8)]);
}

function address(bytes: Uint8Array): Uint8Array {
  return concat([new Uint8Array(12), sized(bytes, 20, "address")]);
}

function digest(domain: Domain, struct: readonly Uint8Array[]): Uint8Array {
  const separator = H(
    DOMAIN_TYPE,
    H(ascii("Tally")),
    H(ascii("1")),
    uint(domain.chainId, 256),
    address(domain.marketplace),
  );
  return H(Uint8Array.of(0x19, 0x01), separator, H(...struct));
}

export function voucherDigest(domain: Domain, voucher: Voucher): Uint8Array {
  return digest(domain, [
    VOUCHER_TYPE,
    uint(voucher.jobId, 256),
    uint(voucher.cumTokens, 64),
    uint(voucher.seq, 32),
    sized(voucher.root, 32, "root"),
    sized(voucher.model, 32, "model"),
  ]);
}

export function delegationDigest(domain: Domain, delegation: Delegation): Uint8Array {
  return digest(domain, [
    DELEGATION_TYPE,
    uint(delegation.jobId, 256),
    address(delegation.sessionKey),
    address(delegation.host),
    sized(delegation.model, 32, "model"),
    uint(delegation.price, 256),
    uint(delegation.cap, 64),
    uint(delegation.expiry, 64),
  ]);
}
