// Bytes as the claim formats write them, and the one error that this package throws.
//
// Never uses more than Web APIs: the page and Node load the same files. Integers past 2^53 are
// bigints; whatever does not fit its field is refused, never cut.

/** What was refused, by a stable `code`; the words may change. */
export class ClaimError extends Error {
  readonly code: string;

  constructor(code: string, words: string) {
    super(`${code}: ${words}`);
    this.name = "ClaimError";
    this.code = code;
  }
}

/** The largest unsigned numbers of 32 and 64 bits. */
export const U32_MAX = 0xffff_ffff;
export const U64_MAX = 0xffff_ffff_ffff_ffffn;

/** Bytes of `text`, with or without `0x`, of `size` bytes where a size is given. */
export function unhex(text: string, size?: number): Uint8Array {
  const digits = text.startsWith("0x") ? text.slice(2) : text;
  if (digits.length % 2 !== 0 || !/^[0-9a-fA-F]*$/.test(digits)) {
    throw new ClaimError("bad_hex", "wanted pairs of hexadecimal digits");
  }
  const bytes = new Uint8Array(digits.length / 2);
  for (let i = 0; i < bytes.length; i++) {
    bytes[i] = Number.parseInt(digits.slice(2 * i, 2 * i + 2), 16);
  }
  return size === undefined ? bytes : sized(bytes, size, "hexadecimal text");
}

const DIGITS = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, "0"));

/** `0x` and two small digits a byte. */
export function hex(bytes: Uint8Array): string {
  let text = "0x";
  for (const byte of bytes) text += DIGITS[byte];
  return text;
}

export function concat(parts: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

export function isEqual(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

export function isZero(bytes: Uint8Array): boolean {
  return bytes.every((byte) => byte === 0);
}

/** `bytes`, if there are `size` of them. */
export function sized(bytes: Uint8Array, size: number, what: string): Uint8Array {
  if (bytes.length !== size) {
    throw new ClaimError("bad_size", `${what}: wanted ${size} bytes, found ${bytes.length}`);
  }
  return bytes;
}

/** `value`, big-endian, in `size` bytes. */
export function be(value: number | bigint, size: number): Uint8Array {
  if (typeof value === "number" && !Number.isSafeInteger(value)) {
    throw new ClaimError("bad_number", `${value} is no whole number`);
  }
  if (size === 4 && typeof value === "number" && value >= 0 && value <= U32_MAX) {
    return Uint8Array.of(value >>> 24, value >>> 16, value >>> 8, value);
  }
  let rest = BigInt(value);
  if (rest < 0n || rest >> BigInt(8 * size) !== 0n) {
    throw new ClaimError("bad_number", `${value} does not fit ${size} bytes`);
  }
  const bytes = new Uint8Array(size);
  for (let i = size - 1; i >= 0; i--) {
    bytes[i] = Number(rest & 0xffn);
    rest >>= 8n;
  }
  return bytes;
}

/** The number that `bytes` write, big-endian. */
export function fromBe(bytes: Uint8Array): bigint {
  return bytes.reduce((value, byte) => (value << 8n) | BigInt(byte), 0n);
}

/** Token ids, four bytes each, little-endian: as they are hashed. */
export function leIds(ids: Uint32Array): Uint8Array {
  const bytes = new Uint8Array(4 * ids.length);
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < ids.length; i++) view.setUint32(4 * i, ids[i]!, true);
  return bytes;
}
