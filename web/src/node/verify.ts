#!/usr/bin/env node
// The command: compares a claim's blob with its proof bytes, prints one line of JSON.
//
//   node web/dist/node/verify.js --blob FILE --proof HEX --chain-id N --marketplace 0x… \
//     --signer 0x… [--job N] [--tokens-used N [--tokens-before N]] [--commitment CHAIN=0x…]…
//
// Ends with 0 where all checks hold, 1 where one does not, 2 where it could not be run. Never
// prints what the blob holds of prompts and answers.

import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { ClaimError, hex, unhex } from "../bytes.js";
import type { Expected } from "../verify.js";
import { verify } from "../verify.js";

const TEXT = { type: "string" } as const;

function bigintOf(text: string): bigint {
  if (!/^[0-9]{1,20}$/.test(text)) throw new ClaimError("bad_option", `${text} is no number`);
  return BigInt(text);
}

function commitmentsOf(told: readonly string[]): Map<number, Uint8Array> {
  const found = told.map((text) => {
    const [chain = "", link = ""] = text.split("=", 2);
    return [Number(bigintOf(chain)), unhex(link, 32)] as const;
  });
  return new Map(found);
}

function run(): number {
  const { values } = parseArgs({
    options: {
      blob: TEXT,
      proof: TEXT,
      "chain-id": TEXT,
      marketplace: TEXT,
      signer: TEXT,
      job: TEXT,
      "tokens-used": TEXT,
      "tokens-before": TEXT,
      commitment: { type: "string", multiple: true },
    },
  });
  const told = (name: "blob" | "proof" | "chain-id" | "marketplace" | "signer"): string => {
    const value = values[name];
    if (value === undefined) throw new ClaimError("bad_option", `--${name} is missing`);
    return value;
  };
  const expected: Expected = {
    chainId: bigintOf(told("chain-id")),
    marketplace: unhex(told("marketplace"), 20),
    signer: unhex(told("signer"), 20),
    tokensBefore: bigintOf(values["tokens-before"] ?? "0"),
    commitments: commitmentsOf(values.commitment ?? []),
    ...(values.job === undefined ? {} : { jobId: bigintOf(values.job) }),
    ...(values["tokens-used"] === undefined ? {} : { tokensUsed: bigintOf(values["tokens-used"]) }),
  };
  const proof = unhex(told("proof"));
  const verdict = verify(new Uint8Array(readFileSync(told("blob"))), proof, expected);
  const shown = (_: string, value: unknown): unknown =>
    value instanceof Uint8Array ? hex(value) : value;
  process.stdout.write(`${JSON.stringify(verdict, shown)}\n`);
  return verdict.ok ? 0 : 1;
}

try {
  process.exitCode = run();
} catch (why) {
  process.stderr.write(`verify: ${why instanceof Error ? why.message : String(why)}\n`);
  process.exitCode = 2;
}
