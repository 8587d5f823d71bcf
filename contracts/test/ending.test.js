// Who may end a session, and when: docs/spec/contract.md section 3, in every version.
"use strict";

const assert = require("node:assert/strict");
const test = require("node:test");
const { NATIVE, TRAITS, VERSION_NAMES, WINDOW, proofBytes, versionTests } =
  require("./support.js");

const SESSION = "job_marketplace";
const WAIT = "Must wait dispute window";
const EARLY_END = "Session not timed out";

/** Whom a version lets complete beside the depositor, after the window from the start. */
const COMPLETERS = {
  v3a: { stranger: "Only host or requester" },
  vouchers: { stranger: "Only host or requester" },
  v3: { stranger: undefined },
  v4: { stranger: undefined },
  "v4-late": { stranger: undefined },
  v5: { stranger: "Only host or depositor" },
  v6: { stranger: "Only host or depositor" },
  v7: { stranger: "Only host or depositor" },
};

versionTests(test, VERSION_NAMES, (rule, name) => {
  const bound = name === "v7"; // its silence is a window of its own

  rule("the_depositor_completes_at_any_time_others_after_the_window_from_the_start", async (w) => {
    const { stranger } = COMPLETERS[name];
    const table = [
      ["depositor", 1n, undefined],
      ["host", WINDOW - 1n, WAIT],
      ["host", WINDOW, undefined],
      ["host", WINDOW + 1n, undefined],
      ["stranger", WINDOW - 1n, stranger ?? WAIT],
      ["stranger", WINDOW, stranger],
      ["host2", WINDOW + 1n, stranger],
      ["stranger", 100n * WINDOW, stranger],
    ];
    for (const [role, after, reason] of table) {
      await w.isolated(async () => {
        const { id, start } = await w.open();
        const at = start + after;
        const result = await w.transact(w[role], SESSION, "completeSessionJob", [id, "c"], { at });
        assert.equal(result.reason, reason, `${role} after ${after} s`);
        const session = await w.read(SESSION, "sessionJobs", id);
        assert.equal(session.status, reason === undefined ? 1n : 0n);
        assert.equal(session.conversationCID, reason === undefined ? "c" : "");
      });
    }
  });

  rule("a_late_proof_does_not_extend_the_window", async (w) => {
    const { id, start } = await w.open();
    const at = start + WINDOW - 1n;
    assert.ok((await w.claim(id, 100n, proofBytes(1), { at })).ok);
    const end = [w.host, SESSION, "completeSessionJob", [id, ""]];
    await w.ok(...end, { at: start + WINDOW });
  });

  rule("a_timeout_needs_one_of_two_deadlines_to_be_past", async (w) => {
    const table = [
      [{ maxDuration: 50n }, 49n, EARLY_END],
      [{ maxDuration: 50n }, 50n, EARLY_END],
      [{ maxDuration: 50n }, 51n, undefined],
      // 3 × proofInterval seconds; v7's window of 0 stands for the same 300.
      [{}, 299n, EARLY_END],
      [{}, 300n, EARLY_END],
      [{}, 301n, undefined],
      [{ proofInterval: 101n }, 301n, bound ? undefined : EARLY_END],
      [{ proofInterval: 101n }, 303n, bound ? undefined : EARLY_END],
      [{ proofInterval: 101n }, 304n, undefined],
    ];
    for (const [terms, after, reason] of table) {
      await w.isolated(async () => {
        const { id, start } = await w.open(terms);
        const at = start + after;
        const result = await w.transact(w.stranger, SESSION, "triggerSessionTimeout", [id], { at });
        assert.equal(result.reason, reason, `${Object.keys(terms)} after ${after} s`);
      });
    }
  });

  rule("silence_counts_from_the_last_proof", async (w) => {
    const { id, start } = await w.open();
    assert.ok((await w.claim(id, 100n, proofBytes(1), { at: start + 200n })).ok);
    const timeout = [SESSION, "triggerSessionTimeout", [id]];
    await w.reverts(EARLY_END, w.stranger, ...timeout, { at: start + 500n });
    await w.ok(w.stranger, ...timeout, { at: start + 501n });
    assert.equal((await w.read(SESSION, "sessionJobs", id)).status, 2n);
  });

  rule("completing_before_the_last_proof_forfeits_it", async (w) => {
    const { id } = await w.open();
    // By the host, which no version pays for nothing.
    await w.ok(w.host, SESSION, "completeSessionJob", [id, ""], { at: w.clock + WINDOW });
    const late = await w.claim(id, 100n, proofBytes(1), { at: w.clock + 10n });
    assert.equal(late.reason, "Session not active");
    assert.equal(await w.read("host_earnings", "getBalance", w.host, NATIVE), 0n);
  });

  rule("a_session_ends_once_and_an_unknown_one_never", async (w) => {
    const { id } = await w.open();
    const complete = (job) => [w.depositor, SESSION, "completeSessionJob", [job, ""]];
    const timeout = (job) => [w.depositor, SESSION, "triggerSessionTimeout", [job]];
    await w.ok(...complete(id));
    const at = () => ({ at: w.clock + 100_000n });
    await w.reverts("Session not active", ...complete(id), at());
    await w.reverts("Session not active", ...timeout(id), at());
    await w.reverts("Session not found", ...complete(99n), at());
    await w.reverts("Session not found", ...timeout(99n), at());
  });
});

// v7: the proof timeout window, and what it does not depend on.
versionTests(test, ["v7"], (rule) => {
  rule("a_proof_timeout_window_is_60_to_3600_seconds_and_0_stands_for_300", async (w) => {
    const wrong = (n) => `InvalidProofTimeoutWindow(${n})`;
    for (const [window, recorded, reason] of [
      [0n, 300n, undefined],
      [1n, undefined, wrong(1)],
      [59n, undefined, wrong(59)],
      [60n, 60n, undefined],
      [61n, 61n, undefined],
      [3599n, 3599n, undefined],
      [3600n, 3600n, undefined],
      [3601n, undefined, wrong(3601)],
      [2n ** 256n - 1n, undefined, wrong(2n ** 256n - 1n)],
    ]) {
      await w.isolated(async () => {
        const opened = await w.tryOpen({ window });
        assert.equal(opened.reason, reason, String(window));
        if (reason !== undefined) return;
        const session = await w.read(SESSION, "sessionJobs", 1n);
        assert.equal(session.proofTimeoutWindow, recorded);
        const timeout = [w.stranger, SESSION, "triggerSessionTimeout", [1n]];
        await w.reverts(EARLY_END, ...timeout, { at: opened.at + recorded });
        await w.ok(...timeout, { at: opened.at + recorded + 1n });
      });
    }
  });
});

test("the_table_of_completers_has_every_version", () => {
  assert.deepEqual(Object.keys(COMPLETERS), VERSION_NAMES);
  assert.deepEqual(Object.keys(TRAITS), VERSION_NAMES);
});
