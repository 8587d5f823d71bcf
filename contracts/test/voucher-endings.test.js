// Batches of vouchers, and what is claimable and paid when a voucher session ends:
// docs/spec/contract.md section 7.
"use strict";

const assert = require("node:assert/strict");
const test = require("node:test");
const { DEFAULT_TERMS, ethers } = require("../chain.js");
const { NATIVE, WINDOW, proofBytes, worldTests } = require("./support.js");
const {
  VOUCHER_FAULT, delegation, malformed, refusedVoucher, sessionKey, unpacked, voucher, vouchered,
} = require("./signing.js");

const SESSION = "job_marketplace";
const EARNINGS = "host_earnings";
const rule = worldTests(test, { name: "vouchers", registered: false });
const claim = (w, args, options) => w.transact(w.host, SESSION, "submitVoucher", args, options);
const used = async (w, id) => (await w.read(SESSION, "sessionJobs", id)).tokensUsed;
const share = (payment) => payment - (payment * DEFAULT_TERMS.feeBasisPoints) / 10_000n;

const PAID = "ProofSubmitted(uint256,address,uint256,bytes32)";
const SKIPPED = "VoucherSkipped(uint256,uint8)";

/** How many vouchers of a batch would be paid now. */
async function accepted(w, batch, from = w.host) {
  const data = w.abi[SESSION].encodeFunctionData("submitVouchers", [batch]);
  const raw = await w.rpc("eth_call", { from, to: w.addresses[SESSION], data }, "latest");
  return w.abi[SESSION].decodeFunctionResult("submitVouchers", raw)[0];
}

rule("a_bad_voucher_of_a_batch_is_named_and_holds_up_no_other", async (w) => {
  const F = VOUCHER_FAULT;
  const good = [await vouchered(w), await vouchered(w), await vouchered(w)];
  const capped = await vouchered(w, {}, { cap: 400n });
  const small = await vouchered(w, { tokens: 450n });
  const fresh = (await w.open({ vouchers: true })).id;
  const plain = (await w.open()).id;
  const ended = await vouchered(w);
  await w.ok(w.depositor, SESSION, "completeSessionJob", [ended, ""]);
  const theirs = (await w.open({ vouchers: true, host: w.host2 })).id;
  const twin = malformed(voucher(w, good[1], 500n)[4])["the twin"];
  const table = [
    [voucher(w, good[0], 500n), undefined],
    [voucher(w, ended, 500n), F.SessionNotActive],
    [voucher(w, theirs, 500n), F.NotHost],
    [voucher(w, 99n, 500n), F.NotHost],
    [voucher(w, plain, 500n), F.NotVoucherSession],
    [voucher(w, fresh, 500n), F.NoDelegation],
    [voucher(w, good[0], 500n), F.AlreadyPaid],
    [voucher(w, good[0], 599n), F.BelowMinimum],
    [voucher(w, capped, 500n), F.AboveCap],
    [voucher(w, small, 500n), F.AboveDeposit],
    [voucher(w, good[1], 500n, { told: { signature: twin } }), F.MalformedSignature],
    [voucher(w, good[1], 500n, { key: sessionKey(1) }), F.WrongSigner],
    [voucher(w, good[1], 500n), undefined],
    [voucher(w, good[0], 600n), undefined],
    [voucher(w, good[2], 100n), undefined],
  ];
  const batch = table.map(([args]) => unpacked(args));
  assert.equal(await accepted(w, batch), 4n);
  const { logs } = await w.ok(w.host, SESSION, "submitVouchers", [batch]);
  const added = { [good[0]]: [500n, 100n], [good[1]]: [500n], [good[2]]: [100n] };
  assert.deepEqual(w.events(SESSION, logs), table.map(([args, fault]) => {
    const [id, , , root] = args;
    if (fault !== undefined) return [SKIPPED, id, BigInt(fault)];
    return [PAID, id, w.host, added[id].shift(), root];
  }));
  const sums = [[good[0], 600n], [good[1], 500n], [good[2], 100n], [capped, 0n], [small, 0n],
    [fresh, 0n], [plain, 0n], [ended, 0n], [theirs, 0n]];
  for (const [id, sum] of sums) assert.equal(await used(w, id), sum, `session ${id}`);
});

rule("an_expired_voucher_of_a_batch_is_skipped", async (w) => {
  const long = { maxDuration: 300_000n };
  const early = await vouchered(w, long, { expiry: w.clock });
  const late = await vouchered(w, long);
  const batch = [early, late].map((id) => unpacked(voucher(w, id, 100n)));
  const at = (await w.read(SESSION, "voucherState", early)).deadline + 1n;
  const { logs } = await w.ok(w.host, SESSION, "submitVouchers", [batch], { at });
  assert.deepEqual(w.events(SESSION, logs)[0], [SKIPPED, early, BigInt(VOUCHER_FAULT.Expired)]);
  assert.equal(await used(w, late), 100n);
});

rule("a_batch_pays_its_caller_alone_and_may_be_empty", async (w) => {
  const id = await vouchered(w);
  const batch = [unpacked(voucher(w, id, 500n))];
  for (const by of [w.host2, w.stranger, w.depositor]) {
    const { logs } = await w.ok(by, SESSION, "submitVouchers", [batch]);
    assert.deepEqual(w.events(SESSION, logs), [[SKIPPED, id, BigInt(VOUCHER_FAULT.NotHost)]]);
  }
  assert.equal(await used(w, id), 0n);
  assert.deepEqual((await w.ok(w.host, SESSION, "submitVouchers", [[]])).logs, []);
});

rule("what_was_claimed_is_settled_and_nothing_is_claimable_after_the_end", async (w) => {
  for (const [ending, by, wait] of [
    ["completeSessionJob", "depositor", 1n],
    ["completeSessionJob", "host", WINDOW],
    ["triggerSessionTimeout", "stranger", 301n],
  ]) {
    await w.isolated(async () => {
      const deposit = w.cost(1000n) + 3n;
      const id = await vouchered(w, { deposit });
      const last = await w.ok(w.host, SESSION, "submitVoucher", voucher(w, id, 600n));
      const [before, payment] = [await w.balance(w.depositor), w.cost(600n)];
      const args = ending === "completeSessionJob" ? [id, "cid"] : [id];
      const { logs } = await w.ok(w[by], SESSION, ending, args, { at: last.at + wait });
      const [earned, refund] = [share(payment), deposit - payment];
      const wanted = ending === "completeSessionJob"
        ? ["SessionCompleted(uint256,uint256,uint256,uint256)", id, 600n, earned, refund]
        : ["SessionTimedOut(uint256,uint256,uint256)", id, earned, refund];
      assert.deepEqual(w.events(SESSION, logs), [wanted]);
      if (by !== "depositor") assert.equal((await w.balance(w.depositor)) - before, refund);
      assert.equal(await w.read(EARNINGS, "getBalance", w.host, NATIVE), earned);
      const job = await w.read(SESSION, "sessionJobs", id);
      assert.deepEqual([job.tokensUsed, job.withdrawnByHost, job.refundedToUser],
        [600n, earned, refund]);

      const late = await claim(w, voucher(w, id, 900n));
      assert.equal(late.reason, refusedVoucher(id, VOUCHER_FAULT.SessionNotActive));
      const state = await w.read(SESSION, "voucherState", id);
      assert.deepEqual([state.host, state.paidTokens, state.sessionKey],
        [NATIVE, 600n, sessionKey().address], "who may claim is gone, what was paid stays");
      assert.equal(await w.read(SESSION, "voucherFunds", NATIVE), 0n);
      const again = await w.transact(w.depositor, SESSION, "completeSessionJob", [id, ""]);
      assert.equal(again.reason, "Session not active");
    });
  }
});

rule("a_session_without_a_claim_is_refunded_whole", async (w) => {
  const id = await vouchered(w);
  await w.ok(w.depositor, SESSION, "completeSessionJob", [id, ""]);
  const job = await w.read(SESSION, "sessionJobs", id);
  assert.deepEqual([job.withdrawnByHost, job.refundedToUser], [0n, job.deposit]);
});

rule("silence_counts_from_the_last_claim_and_a_late_claim_may_still_come", async (w) => {
  const silence = 300n; // three times the proof interval, in seconds
  const id = await vouchered(w);
  const early = "Session not timed out";
  const { startTime } = await w.read(SESSION, "sessionJobs", id);
  const timeout = (at) => w.transact(w.stranger, SESSION, "triggerSessionTimeout", [id], { at });
  assert.equal((await timeout(startTime + silence)).reason, early);
  // Past the silence, and nobody has triggered the timeout.
  const claimed = await claim(w, voucher(w, id, 100n), { at: startTime + silence + 50n });
  assert.ok(claimed.ok, claimed.reason);
  assert.equal((await timeout(claimed.at + silence)).reason, early);
  assert.ok((await timeout(claimed.at + silence + 1n)).ok);
});

rule("a_voucher_is_taken_past_max_duration_until_somebody_triggers_the_timeout", async (w) => {
  const id = await vouchered(w, { maxDuration: 10n });
  const claimed = await claim(w, voucher(w, id, 100n), { at: w.clock + 100n });
  assert.ok(claimed.ok, claimed.reason);
  await w.ok(w.stranger, SESSION, "triggerSessionTimeout", [id]);
  assert.equal(await used(w, id), 100n);
});

rule("a_token_session_is_settled_in_its_token", async (w) => {
  const { token } = w.addresses;
  const [deposit, price] = [800_000n, 101n];
  await w.ok(w.depositor, "token", "mint", [w.depositor, deposit]);
  await w.ok(w.depositor, "token", "approve", [w.addresses.job_marketplace, deposit]);
  const id = await vouchered(w, { way: "token", deposit, price }, { price });
  await w.ok(w.host, SESSION, "submitVoucher", voucher(w, id, 151n));
  await w.ok(w.depositor, SESSION, "completeSessionJob", [id, ""]);
  const payment = 151n * price;
  assert.equal(await w.read("token", "balanceOf", w.depositor), deposit - payment);
  assert.equal(await w.read(EARNINGS, "getBalance", w.host, token), share(payment));
  assert.equal(await w.read(SESSION, "voucherFunds", token), 0n);
});

rule("the_deposit_of_a_voucher_session_cannot_be_withdrawn", async (w) => {
  const { deposit } = await w.open({ vouchers: true });
  assert.equal(await w.read(SESSION, "getDepositBalance", w.depositor, NATIVE), 0n);
  await w.reverts("Insufficient balance", w.depositor, SESSION, "withdrawNative", [1n]);
  // Beside it, a plain session's can: that is v3a's trap.
  const plain = await w.open({ deposit });
  await w.ok(w.depositor, SESSION, "withdrawNative", [deposit]);
  assert.equal((await w.read(SESSION, "sessionJobs", plain.id)).deposit, deposit);
});

rule("no_plain_session_is_paid_from_the_deposit_of_a_voucher_session", async (w) => {
  const id = await vouchered(w);
  const plain = await w.open({ depositor: w.depositor2 });
  assert.ok((await w.claim(plain.id, 100n, proofBytes(1), { at: w.clock + 10n })).ok);
  await w.ok(w.depositor2, SESSION, "withdrawNative", [plain.deposit]);
  const touched = `VoucherFundsTouched(${NATIVE})`;
  await w.reverts(touched, w.depositor2, SESSION, "completeSessionJob", [plain.id, ""]);
  // The voucher session is settled whole.
  await w.ok(w.host, SESSION, "submitVoucher", voucher(w, id, 10_000n));
  await w.ok(w.depositor, SESSION, "completeSessionJob", [id, ""]);
  assert.equal(await w.read(EARNINGS, "getBalance", w.host, NATIVE), share(w.cost(10_000n)));
});

rule("a_voucher_session_opens_only_with_money_that_is_there", async (w) => {
  const value = 10n ** 18n;
  await w.ok(w.depositor, SESSION, "depositNative", [], { value });
  const plain = await w.open({ depositor: w.depositor2, deposit: value });
  await w.ok(w.depositor2, SESSION, "withdrawNative", [value]);
  await w.ok(w.depositor2, SESSION, "completeSessionJob", [plain.id, ""]);
  // The plain session's refund was the first depositor's money.
  const opened = await w.tryOpen({ vouchers: true, way: "deposit", deposit: value });
  assert.equal(opened.reason, `VoucherFundsTouched(${NATIVE})`);
});

rule("a_settlement_that_calls_back_finds_nothing_to_claim", async (w) => {
  // The requester is a contract, and the session's host too: in the refund it claims once more.
  const { address: wallet, abi } = await w.deploy("ContractWallet");
  [w.addresses.wallet, w.abi.wallet] = [wallet, abi];
  const run = (method, args, value = 0n) => {
    const data = w.abi[SESSION].encodeFunctionData(method, args);
    const call = abi.encodeFunctionData("execute", [w.addresses[SESSION], data]);
    return w.send(w.depositor, wallet, call, { value });
  };
  const open = w.opening({ vouchers: true, host: wallet });
  assert.ok((await run(open.method, open.args, open.value)).ok);
  const [fields] = delegation(w, 1n, { host: wallet });
  const told = await w.read(SESSION, "delegationDigest", fields);
  const taken = ethers.solidityPackedKeccak256(["bytes32", "bytes"], [told, "0x"]);
  await w.send(w.stranger, wallet, abi.encodeFunctionData("set", [taken, "0x1626ba7e"]));
  assert.ok((await run("registerDelegation", [fields, "0x"])).ok);
  assert.ok((await run("submitVoucher", voucher(w, 1n, 100n))).ok);
  const late = w.abi[SESSION].encodeFunctionData("submitVoucher", voucher(w, 1n, 10_000n));
  const onMoney = abi.encodeFunctionData("callOnMoney", [w.addresses[SESSION], late]);
  assert.ok((await w.send(w.stranger, wallet, onMoney)).ok);
  const before = await w.balance(wallet);
  assert.ok((await run("completeSessionJob", [1n, ""])).ok);
  assert.ok((await w.balance(wallet)) > before, "the refund came");
  assert.equal(await w.read("wallet", "calledBack"), false);
  assert.equal(await used(w, 1n), 100n);
});
