// The command says in its exit status what it found.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { decodeBlob } from "../blob/decode.js";
import { unhex } from "../bytes.js";
import { fixture } from "./fixtures.js";

const COMMAND = fileURLToPath(new URL("../node/verify.js", import.meta.url));

test("the command ends with 0 for what holds, 1 for what does not, else with 2", (t) => {
  const { claims } = fixture<{ claims: Record<string, string>[] }>(
    "tests/fixtures/proof/blobs.json",
  );
  const hasNonce = (blob: string): boolean =>
    decodeBlob(unhex(blob)).turns.some(({ turnNo, seed }) => {
      return turnNo < 1024 && seed.nonces !== undefined;
    });
  const told = claims.find(({ honest, blob }) => honest && hasNonce(blob!))!;
  const folder = mkdtempSync(join(tmpdir(), "tally-web-"));
  t.after(() => rmSync(folder, { recursive: true }));
  const file = join(folder, "blob");
  writeFileSync(file, unhex(told.blob!));
  const run = (changes: Record<string, string>): { status: number | null; out: string } => {
    const options: Record<string, string> = {
      "--blob": file,
      "--proof": told.proof!,
      "--chain-id": told.chain_id!,
      "--marketplace": told.marketplace!,
      "--signer": told.signer!,
      ...changes,
    };
    const words = Object.entries(options).flatMap(([name, value]) => [name, value]);
    const { status, stdout } = spawnSync(process.execPath, [COMMAND, ...words]);
    return { status, out: String(stdout) };
  };
  const good = run({});
  assert.equal(good.status, 0);
  const { ok, tokens, root, signer, reasons } = JSON.parse(good.out) as Record<string, unknown>;
  assert.deepEqual(
    { ok, tokens, root, signer, reasons },
    { ok: true, tokens: told.tokens, root: told.root, signer: told.signer, reasons: [] },
  );
  assert.equal(run({ "--signer": told.marketplace! }).status, 1);
  assert.equal(run({ "--proof": "0x00" }).status, 1);
  assert.equal(run({ "--commitment": `0=${"0x" + "00".repeat(32)}` }).status, 1);
  for (const changes of [
    { "--blob": join(folder, "none") },
    { "--proof": "hello" },
    { "--chain-id": "one" },
    { "--signer": "0x12" },
    { "--unknown": "1" },
  ]) {
    assert.deepEqual(run(changes), { status: 2, out: "" });
  }
});
