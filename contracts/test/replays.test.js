// What was signed for one thing pays for nothing else, and nothing is paid beyond what was signed:
// docs/spec/contract.md section 7.
"use strict";

const assert = require("node:assert/strict");
const test = require("node:test");
const { DEFAULT_TERMS, artifact, ethers, revertReason } = require("../chain.js");
const { WINDOW, worldTests } = require("./support.js");
const {
  DELEGATION_FAULT, VOUCHER_FAULT, delegation, refusedDelegation, refusedVoucher, unpacked,
  voucher, vouchered,
} = require("./signing.js");

const SESSION = "job_marketplace";
const rule = worldTests(test, { name: "vouchers", registered: false });
const claim = (w, args, by = w.host) => w.transact(by, SESSION, "submitVoucher", args);
const WRONG = VOUCHER_FAULT.WrongSigner;

rule("a_voucher_pays_for_its_own_session_alone", async (w) => {
  // The same requester, host, key, model and price.
  const [one, two] = [await vouchered(w), await vouchered(w)];
  const told = { jobId: two };
  const other = await claim(w, voucher(w, one, 500n, { told }));
  assert.equal(other.reason, refusedVoucher(two, WRONG));
  assert.ok((await claim(w, voucher(w, one, 500n))).ok);
  assert.equal((await w.read(SESSION, "sessionJobs", two)).tokensUsed, 0n);
});

rule("a_voucher_pays_its_own_host_alone", async (w) => {
  // The user gave the same key to both sessions.
  const mine = await vouchered(w);
  const { id: theirs } = await w.open({ vouchers: true, host: w.host2 });
  const args = delegation(w, theirs, { host: w.host2 });
  await w.ok(w.host2, SESSION, "registerDelegation", args);
  const taken = await claim(w, voucher(w, mine, 500n), w.host2);
  assert.equal(taken.reason, refusedVoucher(mine, VOUCHER_FAULT.NotHost));
  const told = { jobId: theirs };
  const moved = await claim(w, voucher(w, mine, 500n, { told }), w.host2);
  assert.equal(moved.reason, refusedVoucher(theirs, WRONG));
  const delegated = await w.transact(w.host2, SESSION, "registerDelegation", delegation(w, mine));
  assert.equal(delegated.reason, refusedDelegation(mine, DELEGATION_FAULT.NotHost));
});

rule("a_voucher_pays_for_the_delegated_model_alone", async (w) => {
  const id = await vouchered(w);
  const dear = voucher(w, id, 500n, { model: ethers.id("another model") });
  assert.equal((await claim(w, dear)).reason, refusedVoucher(id, WRONG));
  const none = voucher(w, id, 500n, { model: ethers.ZeroHash });
  assert.equal((await claim(w, none)).reason, refusedVoucher(id, WRONG));
});

rule("a_signature_counts_in_its_own_domain_alone", async (w) => {
  const { id } = await w.open({ vouchers: true });
  const domains = [
    ["another chain", { chainId: 1n }],
    ["the chain before and after", { chainId: 31336n }],
    ["another marketplace", { verifyingContract: w.addresses.proof_system }],
    ["no marketplace", { verifyingContract: ethers.ZeroAddress }],
    ["another name", { name: "tally" }],
    ["another version", { version: "2" }],
  ];
  for (const [what, domain] of domains) {
    const args = delegation(w, id, { domain });
    const result = await w.transact(w.host, SESSION, "registerDelegation", args);
    assert.equal(result.reason, refusedDelegation(id, DELEGATION_FAULT.WrongSigner), what);
  }
  await w.ok(w.host, SESSION, "registerDelegation", delegation(w, id));
  for (const [what, domain] of domains) {
    const result = await claim(w, voucher(w, id, 500n, { domain }));
    assert.equal(result.reason, refusedVoucher(id, WRONG), what);
  }
  assert.ok((await claim(w, voucher(w, id, 500n))).ok);
});

rule("a_twin_of_the_marketplace_takes_nothing_that_was_signed_for_it", async (w) => {
  const id = await vouchered(w);
  const { addresses } = w;
  const types = ["address", "address", "address", "address", "uint256", "uint256", "uint256"];
  const twin = await w.deploy("JobMarketplaceVouchers", types, [
    addresses.node_registry, addresses.host_earnings, addresses.proof_system, w.treasury,
    DEFAULT_TERMS.feeBasisPoints, WINDOW, DEFAULT_TERMS.minDeposit,
  ]);
  const [forFirst, voucherOfFirst] = [delegation(w, id), voucher(w, id, 500n)];
  await w.isolated(async () => {
    w.addresses = { ...addresses, job_marketplace: twin.address };
    try {
      // The same id, host, requester and price there.
      assert.equal((await w.open({ vouchers: true })).id, id);
      const register = await w.transact(w.host, SESSION, "registerDelegation", forFirst);
      assert.equal(register.reason, refusedDelegation(id, DELEGATION_FAULT.WrongSigner));
      await w.ok(w.host, SESSION, "registerDelegation", delegation(w, id));
      assert.equal((await claim(w, voucherOfFirst)).reason, refusedVoucher(id, WRONG));
      assert.ok((await claim(w, voucher(w, id, 500n))).ok);
    } finally {
      w.addresses = addresses;
    }
  });
  assert.ok((await claim(w, voucherOfFirst)).ok);
});

rule("a_fork_of_the_chain_has_a_domain_of_its_own", async (w) => {
  const id = await vouchered(w);
  const before = await w.read(SESSION, "domainSeparator");
  /** Why a claim would be refused now; anvil sends nothing under another chain id. */
  const dryRun = async (args) => {
    const data = w.abi[SESSION].encodeFunctionData("submitVoucher", args);
    const call = { from: w.host, to: w.addresses[SESSION], data };
    return w.rpc("eth_call", call, "pending").then(() => undefined, (e) => revertReason(e.data));
  };
  const [here, there] = [{}, { domain: { chainId: 31338n } }]
    .map((domain) => voucher(w, id, 500n, domain));
  const first = [await dryRun(here), await dryRun(there)];
  assert.deepEqual(first, [undefined, refusedVoucher(id, WRONG)]);
  await w.rpc("anvil_setChainId", 31338);
  try {
    assert.notEqual(await w.read(SESSION, "domainSeparator"), before);
    const forked = [await dryRun(here), await dryRun(there)];
    assert.deepEqual(forked, [refusedVoucher(id, WRONG), undefined]);
  } finally {
    await w.rpc("anvil_setChainId", 31337);
  }
});

rule("a_voucher_counts_as_it_was_signed_or_not_at_all", async (w) => {
  const id = await vouchered(w);
  for (const [what, told] of [
    ["a token more", { cumTokens: 501n }],
    ["a token less", { cumTokens: 499n }],
    ["another number", { seq: 6n }],
    ["another root", { root: ethers.id("another root") }],
  ]) {
    const result = await claim(w, voucher(w, id, 500n, { told }));
    assert.equal(result.reason, refusedVoucher(id, WRONG), what);
  }
});

rule("a_resend_changes_nothing", async (w) => {
  const id = await vouchered(w);
  const [first, second] = [voucher(w, id, 500n), voucher(w, id, 700n)];
  assert.ok((await claim(w, second)).ok);
  const { lastProofTime } = await w.read(SESSION, "sessionJobs", id);
  for (const args of [first, second, second, first]) {
    const again = await claim(w, args);
    assert.equal(again.reason, refusedVoucher(id, VOUCHER_FAULT.AlreadyPaid));
    await w.ok(w.host, SESSION, "submitVouchers", [[unpacked(args)]]);
  }
  const job = await w.read(SESSION, "sessionJobs", id);
  assert.deepEqual([job.tokensUsed, job.lastProofTime], [700n, lastProofTime]);
});

rule("nothing_is_ever_paid_beyond_the_last_voucher", async (w) => {
  // A host that tries everything it can with what it holds, in an order drawn from a fixed seed.
  const id = await vouchered(w, { tokens: 5_000n }, { cap: 4_000n });
  let state = 0x2545f491n;
  const draw = (below) => {
    state = (state * 6364136223846793005n + 1442695040888963407n) % 2n ** 64n;
    return (state >> 33n) % below;
  };
  let signed = 0n; // what the user has signed for
  let paid = 0n;
  const held = [];
  for (let step = 0; step < 80; step += 1) {
    if (draw(3n) === 0n && signed < 4_000n) {
      signed += 32n + draw(200n);
      if (signed > 4_000n) signed = 4_000n;
      held.push(voucher(w, id, signed));
    }
    const more = signed + 1n + draw(1_000n);
    const tries = [
      () => held[Number(draw(BigInt(held.length || 1)))],
      () => voucher(w, id, signed, { told: { cumTokens: more } }),
      () => held.at(-1)?.with(1, more),
      () => held.at(-1)?.with(0, id + 1n),
    ];
    const args = tries[Number(draw(4n))]();
    if (args === undefined) continue;
    const batched = draw(2n) === 0n;
    if (batched) await w.ok(w.host, SESSION, "submitVouchers", [[unpacked(args)]]);
    else await claim(w, args);
    const used = (await w.read(SESSION, "sessionJobs", id)).tokensUsed;
    assert.ok(used <= signed, `step ${step}: ${used} paid, ${signed} signed`);
    assert.ok(used >= paid, `step ${step}: ${used} after ${paid}`);
    assert.ok(used === 0n || held.some((v) => v[1] === used), "a sum that was signed");
    paid = used;
  }
  assert.ok(paid > 1_000n, `the host was paid meanwhile: ${paid}`);
});

test("every_error_of_the_calls_is_in_the_abi_that_clients_read", () => {
  const { abi } = artifact("JobMarketplaceVouchers");
  for (const error of [
    "VoucherRefused(uint256,uint8)", "DelegationRefused(uint256,uint8)", "VouchersOnly(uint256)",
    "VoucherFundsTouched(address)",
  ]) {
    assert.ok(abi.getError(error) !== null, error);
  }
});
