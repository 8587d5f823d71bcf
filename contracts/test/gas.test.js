// What claims cost, as docs/gas.md says: measured here, and compared with the page's table. It
// writes nothing; a failure prints what the page should say.
"use strict";

const assert = require("node:assert/strict");
const fs = require("node:fs");
const path = require("node:path");
const test = require("node:test");
const { ethers } = require("../chain.js");
const { worldTests } = require("./support.js");
const { delegation, unpacked, voucher, vouchered } = require("./signing.js");

const SESSION = "job_marketplace";
const PAGE = path.resolve(__dirname, "../../docs/gas.md");
/** Parts of a hundred by which the page may be off. */
const OFF = 1n;

/** Rows of the page's table: { what: gas }. */
function page() {
  const rows = fs.readFileSync(PAGE, "utf8").matchAll(/^\| ([^|]+?) \| ([\d ]+?) \|/gm);
  const number = (gas) => BigInt(gas.replace(/ /g, ""));
  return Object.fromEntries([...rows].map(([, what, gas]) => [what, number(gas)]));
}

/** Holds a measured figure against its row. */
function holds(what, gas) {
  console.log(`gas: ${what}: ${gas}`);
  const said = page()[what];
  const close = said !== undefined && (gas - said) * 100n <= OFF * said
    && (said - gas) * 100n <= OFF * said;
  assert.ok(close, `docs/gas.md says ${said} for "${what}", measured ${gas}`);
}

/** Proof bytes as long as a node's, and as full. */
const proof = (n) => ethers.concat(
  [0, 1, 2, 3, 4].map((part) => ethers.id(`${n} ${part}`)),
).slice(0, 2 + 2 * 145);

const v3a = worldTests(test, { name: "v3a", registered: false });
v3a("a_plain_claim_costs_what_the_page_says", async (w) => {
  const { id } = await w.open();
  const claims = [];
  for (const n of [1, 2]) {
    const claim = await w.claim(id, 100n, proof(n), { at: w.clock + 10n });
    assert.ok(claim.ok, claim.reason);
    claims.push(claim.gas);
  }
  holds("v3a, `submitProofOfWork`, first claim of a session", claims[0]);
  holds("v3a, `submitProofOfWork`, repeated", claims[1]);
});

const vouchers = worldTests(test, { name: "vouchers", registered: false });
vouchers("a_voucher_costs_what_the_page_says_and_no_more_than_the_bound", async (w) => {
  const { id } = await w.open({ vouchers: true });
  const registered = await w.ok(w.host, SESSION, "registerDelegation", delegation(w, id));
  holds("vouchers, `registerDelegation`", registered.gas);
  const claims = [];
  for (const tokens of [1_000n, 2_000n]) {
    const claim = await w.ok(w.host, SESSION, "submitVoucher", voucher(w, id, tokens));
    claims.push(claim.gas);
  }
  holds("vouchers, `submitVoucher`, first claim of a session", claims[0]);
  holds("vouchers, `submitVoucher`, repeated", claims[1]);
  assert.ok(claims[1] <= 52_000n, `repeated: ${claims[1]}`);

  const both = (await w.open({ vouchers: true })).id;
  const args = [...delegation(w, both), unpacked(voucher(w, both, 1_000n))];
  const first = await w.ok(w.host, SESSION, "submitFirstVoucher", args);
  holds("vouchers, `submitFirstVoucher`: delegation and first claim", first.gas);
});

vouchers("a_plain_session_beside_them_costs_what_the_page_says", async (w) => {
  const { id } = await w.open();
  const claims = [];
  for (const n of [1, 2]) {
    const claim = await w.claim(id, 100n, proof(n), { at: w.clock + 10n });
    assert.ok(claim.ok, claim.reason);
    claims.push(claim.gas);
  }
  holds("vouchers, plain `submitProofOfWork`, first claim of a session", claims[0]);
  holds("vouchers, plain `submitProofOfWork`, repeated", claims[1]);
});

vouchers("a_batch_costs_what_the_page_says_and_no_more_than_the_bound", async (w) => {
  const ids = [];
  for (let i = 0; i < 50; i++) ids.push(await vouchered(w));
  const batch = (count, tokens) =>
    [ids.slice(0, count).map((id) => unpacked(voucher(w, id, tokens)))];
  await w.ok(w.host, SESSION, "submitVouchers", batch(50, 1_000n));
  for (const [count, tokens] of [[1, 2_000n], [10, 3_000n], [50, 4_000n]]) {
    const { gas, logs } = await w.ok(w.host, SESSION, "submitVouchers", batch(count, tokens));
    assert.equal(logs.length, count, "all were paid");
    const each = gas / BigInt(count);
    holds(`vouchers, \`submitVouchers\`, a session of ${count}, repeated`, each);
    if (count === 50) assert.ok(each <= 20_000n, `a session of 50: ${each}`);
  }
});
