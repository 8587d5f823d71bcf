// Voucher sessions, docs/spec/contract.md section 7: opening, delegation, claims one by one. What
// is signed for one thing and shown for another stands in replays.test.js, batches and endings in
// voucher-endings.test.js.
"use strict";

const assert = require("node:assert/strict");
const test = require("node:test");
const { DEFAULT_TERMS, ethers } = require("../chain.js");
const { MODEL, NATIVE, proofBytes, worldTests } = require("./support.js");
const {
  DELEGATION_FAULT, VALID, VOUCHER_FAULT, delegation, digest, foreign, malformed, refusedDelegation,
  refusedVoucher, sessionKey, unpacked, voucher, vouchered,
} = require("./signing.js");

const SESSION = "job_marketplace";
const TOKENS = 10n ** 12n; // units of the ERC-20 that a test's depositor has
const GRACE = 86_400n;
const rule = worldTests(test, { name: "vouchers", registered: false });

/** Gives the depositor approved units of the accepted token. */
async function funded(w) {
  await w.ok(w.depositor, "token", "mint", [w.depositor, TOKENS]);
  await w.ok(w.depositor, "token", "approve", [w.addresses.job_marketplace, TOKENS]);
}

const register = (w, args, by = w.host, options = {}) =>
  w.transact(by, SESSION, "registerDelegation", args, options);
const claim = (w, args, by = w.host, options = {}) =>
  w.transact(by, SESSION, "submitVoucher", args, options);

rule("the_three_ways_to_open_are_recorded_and_announced_as_the_plain_ones", async (w) => {
  await funded(w);
  const { token } = w.addresses;
  const value = 10n ** 17n;
  await w.ok(w.depositor, SESSION, "depositNative", [], { value });
  const created = (event, id, deposit) => [
    ["VoucherSessionCreated(uint256)", id], [event, id, w.depositor, w.host, deposit],
  ];
  const plain = "SessionJobCreated(uint256,address,address,uint256)";
  const fromDeposit = "SessionCreatedByDepositor(uint256,address,address,uint256)";
  const price = 10n;
  const table = [
    [{ way: "native", deposit: value }, plain, NATIVE],
    [{ way: "token", deposit: 1_000_000n, price }, plain, token],
    [{ way: "deposit", deposit: value }, fromDeposit, NATIVE],
  ];
  for (const [terms, event, paidIn] of table) {
    const { id, start, logs, deposit } = await w.open({ vouchers: true, ...terms });
    assert.deepEqual(w.events(SESSION, logs), created(event, id, deposit));
    const job = await w.read(SESSION, "sessionJobs", id);
    assert.deepEqual(
      [job.id, job.requester, job.host, job.paymentToken, job.deposit, job.tokensUsed,
        job.startTime, job.lastProofTime, job.status],
      [id, w.depositor, w.host, paidIn, deposit, 0n, start, start, 0n],
    );
    assert.equal(await w.read(SESSION, "isVoucherSession", id), true);
    assert.deepEqual(
      (await w.read(SESSION, "voucherState", id)).toArray(),
      [w.host, 0n, start, NATIVE, 0n, 0n, ethers.ZeroHash],
    );
  }
  assert.equal(await w.read(SESSION, "voucherFunds", NATIVE), 2n * value);
  assert.equal(await w.read(SESSION, "voucherFunds", token), 1_000_000n);
  const { id } = await w.open();
  assert.equal(await w.read(SESSION, "isVoucherSession", id), false, "a plain one");
  assert.equal(await w.read(SESSION, "isVoucherSession", 99n), false, "an unknown one");
});

rule("a_voucher_session_opens_only_within_the_plain_bounds", async (w) => {
  const min = DEFAULT_TERMS.minDeposit;
  for (const [terms, reason] of [
    [{ deposit: min - 1n, price: 1n }, "Insufficient deposit"],
    [{ deposit: min, price: 1n }, undefined],
    [{ proofInterval: 99n }, "Invalid proof interval"],
    [{ proofInterval: 100n }, undefined],
    [{ deposit: w.cost(100n) - 1n }, "Deposit below interval"],
    [{ price: 0n, deposit: min }, "Invalid price"],
    [{ maxDuration: 0n }, "Invalid duration"],
    [{ host: NATIVE }, "Invalid host"],
    [{ way: "token", token: NATIVE, deposit: min }, "Token not accepted"],
    [{ way: "token", deposit: min, price: 10n }, "Token transfer failed"],
    [{ way: "deposit", deposit: min, price: 1n }, "Insufficient balance"],
  ]) {
    const result = await w.tryOpen({ vouchers: true, ...terms });
    assert.equal(result.reason, reason, Object.keys(terms).join());
  }
});

rule("a_plain_claim_is_refused_from_the_first_block_on", async (w) => {
  const { id, start } = await w.open({ vouchers: true });
  const refused = async (by, reason, at) => {
    const result = await w.claim(id, 100n, proofBytes(1), { by, at });
    assert.equal(result.reason, reason);
  };
  await refused("host", `VouchersOnly(${id})`, start + 1n);
  await refused("host", `VouchersOnly(${id})`, start + 100n);
  await refused("stranger", "Only host can submit proof");
  await w.ok(w.host, SESSION, "registerDelegation", delegation(w, id));
  await refused("host", `VouchersOnly(${id})`, w.clock + 100n);
  await w.ok(w.host, SESSION, "submitVoucher", voucher(w, id, 100n));
  await refused("host", `VouchersOnly(${id})`, w.clock + 100n);
  assert.equal((await w.read(SESSION, "sessionJobs", id)).tokensUsed, 100n);
  await w.ok(w.depositor, SESSION, "completeSessionJob", [id, ""]);
  await refused("host", "Session not active", w.clock + 100n);
  // The proof was not used up: a plain session beside it takes it.
  const plain = await w.open();
  assert.ok((await w.claim(plain.id, 100n, proofBytes(1), { at: w.clock + 10n })).ok);
});

rule("what_is_signed_is_the_digest_that_another_program_computes", async (w) => {
  const [fields] = delegation(w, 7n, { cap: 5n, expiry: 2n ** 64n - 1n });
  const names = ["jobId", "sessionKey", "host", "model", "price", "cap", "expiry"];
  const value = Object.fromEntries(names.map((name, at) => [name, fields[at]]));
  assert.equal(
    await w.read(SESSION, "delegationDigest", fields), digest(w, "Delegation", value),
  );
  const root = ethers.id("root");
  const signed = { jobId: 7n, cumTokens: 2n ** 64n - 1n, seq: 2n ** 32n - 1n, root, model: MODEL };
  assert.equal(
    await w.read(SESSION, "voucherDigest", 7n, signed.cumTokens, signed.seq, root, MODEL),
    digest(w, "Voucher", signed),
  );
  assert.equal(await w.read(SESSION, "domainSeparator"), ethers.TypedDataEncoder.hashDomain({
    name: "Tally", version: "1", chainId: 31337n, verifyingContract: w.addresses[SESSION],
  }));
});

rule("the_example_that_is_given_to_other_programs_is_taken", async (w) => {
  const { domain, domainSeparator, wallet, delegation: d, voucher: v } =
    require("./voucher-example.json");
  assert.equal(w.addresses[SESSION], domain.verifyingContract);
  assert.equal(w.depositor, wallet);
  assert.equal(await w.read(SESSION, "domainSeparator"), domainSeparator);
  const fields = Object.values(d.fields);
  assert.equal(await w.read(SESSION, "delegationDigest", fields), d.digest);
  const signed = Object.values(v.fields);
  assert.equal(await w.read(SESSION, "voucherDigest", ...signed), v.digest);
  for (const { type, typeHash } of [d, v]) assert.equal(ethers.id(type), typeHash);
  await w.open({ vouchers: true, price: BigInt(d.fields.price) });
  await w.ok(w.host, SESSION, "registerDelegation", [fields, d.signature]);
  await w.ok(w.host, SESSION, "submitVoucher", [...signed.slice(0, 4), v.signature]);
});

rule("a_delegation_is_registered_as_it_was_signed", async (w) => {
  const { id, start } = await w.open({ vouchers: true, tokens: 1000n });
  const expiry = w.clock + VALID;
  const most = 2n ** 64n - 1n;
  for (const [cap, limit] of [[999n, 999n], [1000n, 1000n], [1001n, 1000n], [most, 1000n]]) {
    await w.isolated(async () => {
      const args = delegation(w, id, { cap, expiry });
      const { logs } = await w.ok(w.host, SESSION, "registerDelegation", args);
      const { address } = sessionKey();
      assert.deepEqual(w.events(SESSION, logs), [[
        "DelegationRegistered(uint256,address,bytes32,uint64,uint64)",
        id, address, MODEL, cap, expiry,
      ]]);
      assert.deepEqual(
        (await w.read(SESSION, "voucherState", id)).toArray(),
        [w.host, 0n, start, address, limit, expiry + GRACE, MODEL],
      );
    });
  }
});

rule("a_delegation_holds_for_its_session_host_and_price_and_is_the_requesters", async (w) => {
  const { id } = await w.open({ vouchers: true });
  const plain = (await w.open()).id;
  const F = DELEGATION_FAULT;
  const [fields, good] = delegation(w, id);
  const table = [
    ["another's session", F.NotHost, delegation(w, id), w.host2],
    ["by its requester", F.NotHost, delegation(w, id), w.depositor],
    ["by anyone", F.NotHost, delegation(w, id), w.stranger],
    ["an unknown session", F.NotHost, delegation(w, 99n)],
    ["a plain session", F.NotVoucherSession, delegation(w, plain)],
    ["another host", F.WrongHost, delegation(w, id, { host: w.host2 })],
    ["no host", F.WrongHost, delegation(w, id, { host: NATIVE })],
    ["a unit less", F.WrongPrice, delegation(w, id, { price: w.price - 1n })],
    ["a unit more", F.WrongPrice, delegation(w, id, { price: w.price + 1n })],
    ["no key", F.InvalidKey, delegation(w, id, { sessionKey: NATIVE })],
    ["the host's key", F.InvalidKey, delegation(w, id, { sessionKey: w.host })],
    ["signed by a stranger", F.WrongSigner, delegation(w, id, { by: "stranger" })],
    ["signed by the host", F.WrongSigner, delegation(w, id, { by: "host" })],
    ["signed by another user", F.WrongSigner, delegation(w, id, { by: "depositor2" })],
    ["another key than signed", F.WrongSigner,
      delegation(w, id, { told: { sessionKey: w.stranger } })],
    ["a higher cap than signed", F.WrongSigner, delegation(w, id, { told: { cap: 1_000_001n } })],
    ["a later expiry than signed", F.WrongSigner,
      delegation(w, id, { told: { expiry: w.clock + 2n * VALID } })],
    ["another model than signed", F.WrongSigner,
      delegation(w, id, { told: { model: ethers.ZeroHash } })],
    ...Object.entries({ ...malformed(good), ...foreign(good) })
      .map(([what, signature]) => [what, F.WrongSigner, [fields, signature]]),
  ];
  for (const [what, fault, args, by] of table) {
    const result = await register(w, args, by);
    assert.equal(result.reason, refusedDelegation(args[0][0], fault), what);
  }
  assert.ok((await register(w, [fields, good])).ok, "the right one");
});

rule("an_ended_session_takes_no_delegation", async (w) => {
  const { id } = await w.open({ vouchers: true });
  await w.ok(w.depositor, SESSION, "completeSessionJob", [id, ""]);
  const result = await register(w, delegation(w, id));
  assert.equal(result.reason, refusedDelegation(id, DELEGATION_FAULT.SessionNotActive));
});

rule("a_delegation_is_registered_until_a_day_after_its_expiry", async (w) => {
  const { id, start } = await w.open({ vouchers: true, maxDuration: 3n * GRACE });
  assert.equal(await w.read(SESSION, "CLAIM_GRACE"), GRACE);
  const expiry = start + 10n;
  for (const [after, fault] of [[-1n, undefined], [0n, undefined], [1n, "Expired"]]) {
    await w.isolated(async () => {
      const at = expiry + GRACE + after;
      const result = await register(w, delegation(w, id, { expiry }), w.host, { at });
      const wanted = fault && refusedDelegation(id, DELEGATION_FAULT[fault]);
      assert.equal(result.reason, wanted, `${after} s`);
    });
  }
  const old = await register(w, delegation(w, id, { expiry: 0n }));
  assert.equal(old.reason, refusedDelegation(id, DELEGATION_FAULT.Expired));
});

rule("a_further_delegation_expires_later_and_takes_the_place_of_the_first", async (w) => {
  const { id } = await w.open({ vouchers: true });
  const expiry = w.clock + VALID;
  const first = delegation(w, id, { expiry });
  assert.ok((await register(w, first)).ok);
  await w.ok(w.host, SESSION, "submitVoucher", voucher(w, id, 500n));
  const F = DELEGATION_FAULT;
  const next = { sessionKey: sessionKey(1).address, model: ethers.id("another model") };
  for (const [what, fault, args, by] of [
    ["the same again", F.NotLater, first],
    ["a second less", F.NotLater, delegation(w, id, { ...next, expiry: expiry - 1n })],
    ["as late", F.NotLater, delegation(w, id, { ...next, expiry })],
    ["by the requester", F.NotHost, delegation(w, id, { ...next, expiry: expiry + 1n }),
      w.depositor],
  ]) {
    assert.equal((await register(w, args, by)).reason, refusedDelegation(id, fault), what);
  }
  const second = delegation(w, id, { ...next, expiry: expiry + 1n, cap: 700n });
  assert.ok((await register(w, second)).ok);
  const key = sessionKey(1);
  const by = { key, model: next.model };
  for (const [what, fault, args] of [
    ["the old key", "WrongSigner", voucher(w, id, 600n)],
    ["the old model", "WrongSigner", voucher(w, id, 600n, { key })],
    ["what is paid stays paid", "AlreadyPaid", voucher(w, id, 500n, by)],
    ["the new cap holds", "AboveCap", voucher(w, id, 701n, by)],
    ["what is new", undefined, voucher(w, id, 700n, by)],
  ]) {
    const result = await claim(w, args);
    assert.equal(result.reason, fault && refusedVoucher(id, VOUCHER_FAULT[fault]), what);
  }
  assert.equal((await register(w, first)).reason, refusedDelegation(id, F.NotLater));
  // A cap below what is paid takes nothing back, and gives nothing more.
  const low = delegation(w, id, { ...next, expiry: expiry + 2n, cap: 100n });
  assert.ok((await register(w, low)).ok);
  const after = await claim(w, voucher(w, id, 800n, by));
  assert.equal(after.reason, refusedVoucher(id, VOUCHER_FAULT.AboveCap));
  assert.equal((await w.read(SESSION, "sessionJobs", id)).tokensUsed, 700n);
});

rule("a_wallet_that_is_a_contract_delegates_by_its_own_word", async (w) => {
  const { address: wallet, abi } = await w.deploy("ContractWallet");
  const open = w.opening({ vouchers: true });
  const data = w.abi[SESSION].encodeFunctionData(open.method, open.args);
  const opened = await w.send(w.depositor, wallet,
    abi.encodeFunctionData("execute", [w.addresses[SESSION], data]), { value: open.value });
  assert.ok(opened.ok, opened.reason);
  const [fields, signature] = delegation(w, 1n);
  const told = await w.read(SESSION, "delegationDigest", fields);
  const magic = "0x1626ba7e";
  for (const [what, accepted, answer, bytes, works] of [
    ["the signature of its owner's key", ethers.ZeroHash, magic, signature, false],
    ["another digest", ethers.solidityPackedKeccak256(["bytes32", "bytes"],
      [ethers.ZeroHash, "0x1234"]), magic, "0x1234", false],
    ["another answer", ethers.solidityPackedKeccak256(["bytes32", "bytes"],
      [told, "0x1234"]), "0xffffffff", "0x1234", false],
    ["other bytes", ethers.solidityPackedKeccak256(["bytes32", "bytes"],
      [told, "0x1234"]), magic, "0x1235", false],
    ["the right one", ethers.solidityPackedKeccak256(["bytes32", "bytes"],
      [told, "0x1234"]), magic, "0x1234", true],
  ]) {
    const set = abi.encodeFunctionData("set", [accepted, answer]);
    assert.ok((await w.send(w.stranger, wallet, set)).ok);
    const result = await register(w, [fields, bytes]);
    const wanted = works ? undefined : refusedDelegation(1n, DELEGATION_FAULT.WrongSigner);
    assert.equal(result.reason, wanted, what);
  }
  assert.ok((await claim(w, voucher(w, 1n, 100n))).ok);
});

rule("a_contract_without_the_question_has_not_signed", async (w) => {
  const { address: wallet, abi } = await w.deploy("RefusingDepositor");
  const open = w.opening({ vouchers: true });
  const data = w.abi[SESSION].encodeFunctionData(open.method, open.args);
  const opened = await w.send(w.depositor, wallet,
    abi.encodeFunctionData("execute", [w.addresses[SESSION], data]), { value: open.value });
  assert.ok(opened.ok, opened.reason);
  const result = await register(w, delegation(w, 1n));
  assert.equal(result.reason, refusedDelegation(1n, DELEGATION_FAULT.WrongSigner));
});

rule("a_voucher_pays_what_it_adds_and_is_announced_as_a_proof", async (w) => {
  const id = await vouchered(w);
  for (const [cum, added] of [[100n, 100n], [350n, 250n], [9_000n, 8_650n]]) {
    const args = voucher(w, id, cum);
    const { logs, at } = await w.ok(w.host, SESSION, "submitVoucher", args);
    assert.deepEqual(w.events(SESSION, logs), [
      ["ProofSubmitted(uint256,address,uint256,bytes32)", id, w.host, added, args[3]],
    ]);
    const job = await w.read(SESSION, "sessionJobs", id);
    assert.deepEqual([job.tokensUsed, job.lastProofTime], [cum, at]);
    const state = await w.read(SESSION, "voucherState", id);
    assert.deepEqual([state.host, state.paidTokens, state.lastClaimTime], [w.host, cum, at]);
  }
});

rule("a_voucher_is_not_held_to_the_rate_of_a_plain_claim", async (w) => {
  const id = await vouchered(w);
  assert.ok((await claim(w, voucher(w, id, 5_000n), w.host, { at: w.clock + 1n })).ok);
  assert.ok((await claim(w, voucher(w, id, 10_000n), w.host, { at: w.clock + 1n })).ok);
});

rule("a_voucher_adds_at_least_100_tokens_to_what_is_paid", async (w) => {
  const id = await vouchered(w);
  const F = VOUCHER_FAULT;
  for (const [cum, fault] of [
    [0n, F.AlreadyPaid], [1n, F.BelowMinimum], [99n, F.BelowMinimum], [100n, undefined],
    [99n, F.AlreadyPaid], [100n, F.AlreadyPaid], [101n, F.BelowMinimum], [199n, F.BelowMinimum],
    [201n, undefined], [201n, F.AlreadyPaid], [0n, F.AlreadyPaid],
  ]) {
    const result = await claim(w, voucher(w, id, cum));
    assert.equal(result.reason, fault && refusedVoucher(id, fault), `${cum}`);
  }
  assert.equal((await w.read(SESSION, "sessionJobs", id)).tokensUsed, 201n);
});

rule("a_voucher_is_paid_to_the_last_token_of_cap_and_deposit", async (w) => {
  const F = VOUCHER_FAULT;
  const most = 2n ** 64n - 1n;
  for (const [cap, table] of [
    [500n, [[499n, undefined], [500n, undefined], [501n, F.AboveCap], [1001n, F.AboveDeposit]]],
    [1000n, [[1000n, undefined], [1001n, F.AboveDeposit], [most, F.AboveDeposit]]],
    [most, [[999n, undefined], [1000n, undefined], [1001n, F.AboveDeposit]]],
    [0n, [[100n, F.AboveCap]]],
  ]) {
    for (const [cum, fault] of table) {
      await w.isolated(async () => {
        // 1,000 tokens and a half: the division rounds down.
        const id = await vouchered(w, { deposit: w.cost(1000n) + w.cost(1n) / 2n }, { cap });
        const result = await claim(w, voucher(w, id, cum));
        assert.equal(result.reason, fault && refusedVoucher(id, fault), `${cum} of ${cap}`);
      });
    }
  }
});

rule("a_deposit_that_buys_more_tokens_than_a_word_counts_bounds_nothing", async (w) => {
  const cap = 2n ** 64n - 1n;
  const id = await vouchered(w, { deposit: 20n * 10n ** 18n, price: 1n }, { cap, price: 1n });
  assert.equal((await w.read(SESSION, "voucherState", id)).limit, cap);
  assert.ok((await claim(w, voucher(w, id, cap))).ok);
});

rule("a_voucher_is_claimed_until_a_day_after_the_expiry", async (w) => {
  const long = { maxDuration: 10n * GRACE };
  for (const [after, fault] of [[0n, undefined], [1n, VOUCHER_FAULT.Expired]]) {
    await w.isolated(async () => {
      const expiry = w.clock + 1000n;
      const id = await vouchered(w, long, { expiry });
      const at = expiry + GRACE + after;
      const result = await claim(w, voucher(w, id, 100n), w.host, { at });
      assert.equal(result.reason, fault && refusedVoucher(id, fault), `${after} s`);
    });
  }
  // Times hold to 2106; what expires later expires then.
  const id = await vouchered(w, long, { expiry: 2n ** 64n - 1n });
  assert.equal((await w.read(SESSION, "voucherState", id)).deadline, 2n ** 32n - 1n);
});

rule("a_voucher_needs_a_delegation_a_host_and_a_session_of_its_kind", async (w) => {
  const F = VOUCHER_FAULT;
  const { id } = await w.open({ vouchers: true });
  const plain = (await w.open()).id;
  const zero = { told: { signature: `0x${"00".repeat(64)}1b` } };
  for (const [what, fault, args, by] of [
    ["before a delegation", F.NoDelegation, voucher(w, id, 100n)],
    ["before a delegation, nobody's signature", F.NoDelegation, voucher(w, id, 100n, zero)],
    ["a plain session", F.NotVoucherSession, voucher(w, plain, 100n)],
    ["an unknown session", F.NotHost, voucher(w, 99n, 100n)],
    ["another host", F.NotHost, voucher(w, id, 100n), w.host2],
    ["the requester", F.NotHost, voucher(w, id, 100n), w.depositor],
    ["the session key itself", F.NotHost, voucher(w, id, 100n), w.stranger],
  ]) {
    const result = await claim(w, args, by);
    assert.equal(result.reason, refusedVoucher(args[0], fault), what);
  }
});

rule("a_signature_has_one_form_and_is_the_session_keys", async (w) => {
  const id = await vouchered(w);
  const F = VOUCHER_FAULT;
  const good = voucher(w, id, 100n)[4];
  const by = (role) => ({
    key: { sign: (d) => new ethers.SigningKey(w.accounts[role].private_key).sign(d).serialized },
  });
  const table = [
    ...Object.entries(malformed(good)).map(([what, signature]) =>
      [what, F.MalformedSignature, voucher(w, id, 100n, { told: { signature } })]),
    ...Object.entries(foreign(good)).map(([what, signature]) =>
      [what, F.WrongSigner, voucher(w, id, 100n, { told: { signature } })]),
    ["another session key", F.WrongSigner, voucher(w, id, 100n, { key: sessionKey(1) })],
    ["the host", F.WrongSigner, voucher(w, id, 100n, by("host"))],
    ["the wallet itself", F.WrongSigner, voucher(w, id, 100n, by("depositor"))],
    ["the right one", undefined, voucher(w, id, 100n)],
  ];
  for (const [what, fault, args] of table) {
    const result = await claim(w, args);
    assert.equal(result.reason, fault && refusedVoucher(id, fault), what);
  }
});

rule("a_first_voucher_comes_with_its_delegation_or_neither_does", async (w) => {
  const { id } = await w.open({ vouchers: true });
  const both = (v, d = delegation(w, id)) =>
    w.transact(w.host, SESSION, "submitFirstVoucher", [...d, unpacked(v)]);
  const small = await both(voucher(w, id, 99n));
  assert.equal(small.reason, refusedVoucher(id, VOUCHER_FAULT.BelowMinimum));
  assert.equal((await w.read(SESSION, "voucherState", id)).sessionKey, NATIVE, "undone");
  const forged = await both(voucher(w, id, 100n), delegation(w, id, { by: "host" }));
  assert.equal(forged.reason, refusedDelegation(id, DELEGATION_FAULT.WrongSigner));
  const good = await both(voucher(w, id, 100n));
  assert.ok(good.ok, good.reason);
  assert.equal((await w.read(SESSION, "sessionJobs", id)).tokensUsed, 100n);
});
