// The pause of v5 and later, docs/spec/contract.md sections 2 and 3; earlier versions have none.
"use strict";

const assert = require("node:assert/strict");
const test = require("node:test");
const { NATIVE, TRAITS, VERSION_NAMES, WINDOW, proofBytes, versionTests } =
  require("./support.js");

const SESSION = "job_marketplace";
const PAUSED = "EnforcedPause()";
const later = VERSION_NAMES.filter((name) => !TRAITS[name].early);

versionTests(test, later, (rule) => {
  rule("a_pause_stops_claims_and_openings_before_any_other_rule", async (w) => {
    const { id, start } = await w.open();
    await w.ok(w.depositor2, SESSION, "depositNative", [], { value: 10n ** 18n });
    await w.ok(w.deployer, SESSION, "pause", []);
    assert.equal(await w.read(SESSION, "paused"), true);
    for (const by of ["host", "stranger"]) {
      const claim = await w.claim(id, 100n, proofBytes(1), { by, at: w.clock + 10n });
      assert.equal(claim.reason, PAUSED);
    }
    for (const way of ["native", "token", "deposit"]) {
      const opened = await w.tryOpen({ way, depositor: w.depositor2, deposit: 10n ** 18n });
      assert.equal(opened.reason, PAUSED, way);
    }
    await w.ok(w.deployer, SESSION, "unpause", []);
    const job = await w.read(SESSION, "sessionJobs", id);
    assert.equal(job.lastProofTime, start, "the pause itself changed nothing");
    assert.ok((await w.claim(id, 100n, proofBytes(1), { at: w.clock + 10n })).ok);
  });

  rule("sessions_end_and_funds_leave_during_a_pause", async (w) => {
    const [one, two] = [await w.open(), await w.open()];
    const claim = await w.claim(one.id, 100n, proofBytes(1), { at: w.clock + 5n });
    assert.ok(claim.ok, claim.reason);
    await w.ok(w.depositor, SESSION, "depositNative", [], { value: 5n });
    await w.ok(w.deployer, SESSION, "pause", []);
    const after = { at: w.clock + WINDOW };
    await w.ok(w.host, SESSION, "completeSessionJob", [one.id, ""], after);
    const silent = { at: two.start + 301n };
    await w.ok(w.stranger, SESSION, "triggerSessionTimeout", [two.id], silent);
    await w.ok(w.depositor, SESSION, "withdrawNative", [5n]);
    await w.ok(w.host, "host_earnings", "withdrawAll", [NATIVE]);
  });

  rule("the_owner_alone_pauses_and_never_twice", async (w) => {
    for (const method of ["pause", "unpause"]) {
      await w.reverts("Not owner", w.stranger, SESSION, method, []);
    }
    await w.reverts("ExpectedPause()", w.deployer, SESSION, "unpause", []);
    const paused = await w.ok(w.deployer, SESSION, "pause", []);
    assert.deepEqual(w.events(SESSION, paused.logs), [["Paused(address)", w.deployer]]);
    await w.reverts(PAUSED, w.deployer, SESSION, "pause", []);
    const unpaused = await w.ok(w.deployer, SESSION, "unpause", []);
    assert.deepEqual(w.events(SESSION, unpaused.logs), [["Unpaused(address)", w.deployer]]);
  });
});
