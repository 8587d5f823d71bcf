// Every selector, topic and shape that docs/spec/contract.md names: against the hash of its
// signature, and against the committed ABI and bytecode of each version.
"use strict";

const assert = require("node:assert/strict");
const fs = require("node:fs");
const path = require("node:path");
const test = require("node:test");
const { artifact, ethers } = require("../chain.js");
const { VERSIONS } = require("../versions.js");

const marketplaces = Object.entries(VERSIONS).map(([name, traits]) => ({
  name, traits, ...artifact(traits.job_marketplace),
}));
const versions = (...names) => marketplaces.filter(({ name }) => names.includes(name));
const selector = (signature) => ethers.id(signature).slice(0, 10);

/** submitProofOfWork by version (section 1). */
const SUBMIT = {
  v3a: ["submitProofOfWork(uint256,uint256,bytes)", "0xc8c664ee"],
  vouchers: ["submitProofOfWork(uint256,uint256,bytes)", "0xc8c664ee"],
  v3: ["submitProofOfWork(uint256,uint256,bytes)", "0xc8c664ee"],
  v4: ["submitProofOfWork(uint256,uint256,bytes32,string)", "0xace083b3"],
  "v4-late": ["submitProofOfWork(uint256,uint256,bytes32,string)", "0xace083b3"],
  v5: ["submitProofOfWork(uint256,uint256,bytes32,bytes,string)", "0x8dbe53aa"],
  v6: ["submitProofOfWork(uint256,uint256,bytes32,bytes,string,string)", "0x3338f1e5"],
  v7: ["submitProofOfWork(uint256,uint256,bytes32,string,string)", "0x7c5cb561"],
};

/** Functions of all versions whose selectors the page gives. */
const STABLE_SELECTORS = [
  ["completeSessionJob(uint256,string)", "0x040138dd"],
  ["triggerSessionTimeout(uint256)", "0x14a4ffa5"],
  ["sessionJobs(uint256)", "0xef39d372"],
  ["nextJobId()", "0xb0c2aa5e"],
];

/** Functions of all versions that the page names without a selector. */
const STABLE_FUNCTIONS = [
  "hostSessions(address,uint256)", "hostEarnings()", "nodeRegistry()", "proofSystem()",
  "MIN_PROVEN_TOKENS()", "MIN_DEPOSIT()",
];

const PLAIN = [
  "createSessionJob(address,uint256,uint256,uint256)",
  "createSessionJobWithToken(address,address,uint256,uint256,uint256,uint256)",
  "createSessionFromDeposit(address,address,uint256,uint256,uint256,uint256)",
];
const MODEL_BOUND = [
  "createSessionJobForModel(address,bytes32,uint256,uint256,uint256,uint256)",
  "createSessionJobForModelWithToken"
    + "(address,bytes32,address,uint256,uint256,uint256,uint256,uint256)",
  "sessionModel(uint256)",
  "minTokensFee()",
];
const DELEGATION = "(uint256,address,address,bytes32,uint256,uint64,uint64)";
const VOUCHER = "(uint256,uint64,uint32,bytes32,bytes32,bytes32,uint8)";
const UPPER = ["DISPUTE_WINDOW()", "FEE_BASIS_POINTS()"];
const LOWER = ["disputeWindow()", "feeBasisPoints()"];
const PRECISION = ["PRICE_PRECISION()"];
const VOUCHERS = [
  "createVoucherSession(address,uint256,uint256,uint256)",
  "createVoucherSessionWithToken(address,address,uint256,uint256,uint256,uint256)",
  "createVoucherSessionFromDeposit(address,address,uint256,uint256,uint256,uint256)",
  `registerDelegation(${DELEGATION},bytes)`,
  "submitVoucher(uint256,uint64,uint32,bytes32,bytes)",
  `submitFirstVoucher(${DELEGATION},bytes,${VOUCHER})`,
  `submitVouchers(${VOUCHER}[])`,
  "voucherState(uint256)",
  "voucherFunds(address)",
  "isVoucherSession(uint256)",
  "domainSeparator()",
  `delegationDigest(${DELEGATION})`,
  "voucherDigest(uint256,uint64,uint32,bytes32,bytes32)",
  "CLAIM_GRACE()",
];
const PAUSE = ["pause()", "unpause()", "paused()"];

/** What some versions have and the others lack, so that a node can tell them apart. */
const ONLY_SOME = [
  [PLAIN, ["v3a", "vouchers", "v3", "v4", "v4-late", "v5", "v6"]],
  [MODEL_BOUND, ["v7"]],
  [UPPER, ["v3a", "vouchers", "v3", "v4", "v4-late"]],
  [LOWER, ["v5", "v6", "v7"]],
  [PRECISION, ["v4-late", "v5", "v6", "v7"]],
  [PAUSE, ["v5", "v6", "v7"]],
  [VOUCHERS, ["vouchers"]],
];

/** The contracts around the marketplace. */
const REGISTRY_READS = [
  "isActiveNode(address)", "getNodeApiUrl(address)", "getNodeFullInfo(address)",
  "nodeSupportsModel(address,bytes32)", "updateApiUrl(string)", "updateMetadata(string)",
  "updateSupportedModels(bytes32[])", "unregisterNode()",
];
const REGISTER = "registerNode(string,string,bytes32[])";
const REGISTER_PRICED = "registerNode(string,string,bytes32[],uint256,uint256)";
const MODEL_PRICING = "setModelTokenPricing(bytes32,address,uint256)";
const MODELS = ["isModelApproved(bytes32)", "getModelHash(bytes32)"];
const AROUND = {
  HostEarnings: [[
    "creditEarnings(address,uint256,address)", "getBalance(address,address)",
    "withdraw(uint256,address)", "withdrawAll(address)",
  ], []],
  NodeRegistry: [[...REGISTRY_READS, REGISTER], [REGISTER_PRICED, MODEL_PRICING]],
  NodeRegistryV5: [[...REGISTRY_READS, REGISTER_PRICED], [REGISTER, MODEL_PRICING]],
  NodeRegistryV7: [[...REGISTRY_READS, REGISTER_PRICED, MODEL_PRICING], [REGISTER]],
  ModelRegistry: [MODELS, ["getModelRateLimit(bytes32)"]],
  ModelRegistryV7: [[...MODELS, "getModelRateLimit(bytes32)"], []],
  ProofSystem: [["recordVerifiedProof(bytes32)"], ["markProofUsed(bytes32)"]],
  ProofSystemV7: [["recordVerifiedProof(bytes32)", "markProofUsed(bytes32)"], []],
};

const ALL = Object.keys(VERSIONS);
const COMPLETED_BY = "SessionCompleted(uint256,address,uint256,uint256,uint256)";
/** Events: signature, topic (the page shortens one), indexed fields, the versions that emit it. */
const EVENTS = [
  [
    "SessionJobCreated(uint256,address,address,uint256)",
    "0x513b4fec3e6ae39000befae860b986c341242d8f5137c9ffafc229557420c42f",
    [true, true, true, false], ALL,
  ],
  [
    "SessionCompleted(uint256,uint256,uint256,uint256)",
    "0xdc98ea7ca5b8998396967b6d0c1da6e05a17b467b15bdda0f07f6b84dfd31e71",
    [true, false, false, false], ALL,
  ],
  [COMPLETED_BY, "0x", [true, true, false, false, false], ["v3", "v4", "v4-late"]],
  [
    "SessionTimedOut(uint256,uint256,uint256)",
    "0xfa2b97569bd8b93c0adf89bf1f6903b10d258aec3bbfc759b7656034179660da",
    [true, false, false], ALL,
  ],
  [
    "ProofSubmitted(uint256,address,uint256,bytes32)",
    "0xb4c5c92500782d044d3f3d15b5bdc795913a997874aa9ba898f5b24754d4b7f8",
    [true, true, false, false], ["v3a", "vouchers", "v3"],
  ],
  ["VoucherSessionCreated(uint256)", "0x", [true], ["vouchers"]],
  [
    "DelegationRegistered(uint256,address,bytes32,uint64,uint64)", "0x",
    [true, true, false, false, false], ["vouchers"],
  ],
  ["VoucherSkipped(uint256,uint8)", "0x", [true, false], ["vouchers"]],
  [
    "ProofSubmitted(uint256,address,uint256,bytes32,string)", "0x0b81f467",
    [true, true, false, false, false], ["v4", "v4-late", "v5"],
  ],
  [
    "ProofSubmitted(uint256,address,uint256,bytes32,string,string)",
    "0x330d363d69efddb2c24b4f13b34a8f73f88fcc6e07c6b64e8f0c51e78d0d7702",
    [true, true, false, false, false, false], ["v6", "v7"],
  ],
];

/** Outputs of sessionJobs, by version, from the page's lists. */
const [START, END] = [
  ["address host", "address paymentToken", "uint256 deposit", "uint256 pricePerToken",
    "uint256 tokensUsed", "uint256 maxDuration", "uint256 startTime", "uint256 lastProofTime",
    "uint256 proofInterval"],
  ["uint8 status", "uint256 withdrawnByHost", "uint256 refundedToUser", "string conversationCID"],
];
const [ID, DEPOSITOR, REQUESTER] = ["uint256 id", "address depositor", "address requester"];
const LAST = ["bytes32 lastProofHash", "string lastProofCID"];
const SESSIONS = {
  v3a: [15, [ID, REQUESTER, ...START, ...END]],
  vouchers: [15, [ID, REQUESTER, ...START, ...END]],
  v3: [16, [ID, DEPOSITOR, REQUESTER, ...START, ...END]],
  v4: [18, [ID, DEPOSITOR, REQUESTER, ...START, ...END, ...LAST]],
  "v4-late": [18, [ID, DEPOSITOR, REQUESTER, ...START, ...END, ...LAST]],
  v5: [17, [ID, DEPOSITOR, ...START, ...END, ...LAST]],
  v6: [17, [ID, DEPOSITOR, ...START, ...END, ...LAST]],
  v7: [18, [ID, DEPOSITOR, ...START, "uint256 proofTimeoutWindow", ...END, ...LAST]],
};

test("each_versions_claim_has_the_selector_of_the_page_and_no_others", () => {
  for (const { name, abi, bytecode } of marketplaces) {
    const [own, ownSelector] = SUBMIT[name];
    assert.equal(selector(own), ownSelector, name);
    for (const [signature, other] of Object.values(SUBMIT)) {
      const wanted = signature === own;
      assert.equal(abi.getFunction(signature) !== null, wanted, `${name}: ${signature}`);
      assert.equal(bytecode.includes(other.slice(2)), wanted, `${name}: ${other}`);
    }
  }
});

test("the_stable_selectors_are_in_every_abi_and_bytecode", () => {
  for (const { name, abi, bytecode } of marketplaces) {
    for (const [signature, wanted] of STABLE_SELECTORS) {
      assert.equal(abi.getFunction(signature)?.selector, wanted, `${name}: ${signature}`);
      assert.ok(bytecode.includes(wanted.slice(2)), `${name}: ${wanted} in the bytecode`);
    }
    for (const signature of STABLE_FUNCTIONS) {
      assert.ok(abi.getFunction(signature) !== null, `${name}: ${signature}`);
    }
  }
  assert.equal(selector(PLAIN[0]), "0x366e2177");
});

test("what_only_some_versions_have_is_missing_in_the_others", () => {
  for (const [signatures, names] of ONLY_SOME) {
    for (const { name, abi, bytecode } of marketplaces) {
      for (const signature of signatures) {
        const wanted = names.includes(name);
        assert.equal(abi.getFunction(signature) !== null, wanted, `${name}: ${signature}`);
        const found = bytecode.includes(selector(signature).slice(2));
        assert.equal(found, wanted, `${name}: ${signature} in the bytecode`);
      }
    }
  }
});

test("every_function_around_the_marketplace_is_there", () => {
  for (const [contract, [present, absent]] of Object.entries(AROUND)) {
    const { abi } = artifact(contract);
    for (const signature of present) {
      assert.ok(abi.getFunction(signature) !== null, `${contract}.${signature}`);
    }
    for (const signature of absent) {
      assert.equal(abi.getFunction(signature), null, `${contract}.${signature}`);
    }
  }
});

test("the_topics_and_indexed_fields_are_in_the_abis_that_emit_them", () => {
  for (const [signature, topic, indexed, names] of EVENTS) {
    assert.ok(ethers.id(signature).startsWith(topic), signature);
    for (const { name, abi } of marketplaces) {
      const event = abi.getEvent(signature);
      assert.equal(event !== null, names.includes(name), `${name}: ${signature}`);
      if (event === null) continue;
      assert.equal(event.topicHash, ethers.id(signature));
      const found = event.inputs.map((input) => input.indexed === true);
      assert.deepEqual(found, indexed, `${name}: ${signature}`);
    }
  }
});

test("a_session_reads_as_the_outputs_of_its_version", () => {
  for (const { name, abi } of marketplaces) {
    const [count, wanted] = SESSIONS[name];
    const { outputs } = abi.getFunction("sessionJobs");
    assert.deepEqual(outputs.map((o) => `${o.type} ${o.name}`), wanted, name);
    assert.equal(outputs.length, count, name);
  }
});

test("every_marketplace_takes_value_without_and_with_an_unknown_selector", () => {
  for (const { name, traits, abi } of marketplaces) {
    assert.equal(abi.receive, true, name);
    assert.equal(abi.fallback?.payable, true, name);
    const open = traits.modelBound ? "createSessionJobForModel" : "createSessionJob";
    assert.equal(abi.getFunction(open).payable, true, name);
  }
});

test("pausable_versions_name_the_error_and_v7_adds_errors_of_its_own", () => {
  const errors = ({ abi }) =>
    abi.fragments.filter((f) => f.type === "error").map((f) => f.name).sort();
  const guard = "ReentrancyGuardReentrantCall";
  for (const version of versions("v3a", "v3", "v4", "v4-late")) {
    assert.deepEqual(errors(version), [guard], version.name);
  }
  const [vouchers] = versions("vouchers");
  assert.deepEqual(errors(vouchers), [
    "DelegationRefused", guard, "VoucherFundsTouched", "VoucherRefused", "VouchersOnly",
  ], "no pause: nobody can hold up a voucher");
  const pausable = ["EnforcedPause", "ExpectedPause", guard];
  for (const version of versions("v5", "v6")) {
    assert.deepEqual(errors(version), pausable, version.name);
  }
  const [v7] = versions("v7");
  assert.ok(errors(v7).length > pausable.length);
  for (const error of pausable) assert.ok(errors(v7).includes(error), error);
});

test("the_proof_system_taken_for_the_marketplace_lacks_its_selectors", () => {
  for (const contract of ["ProofSystem", "ProofSystemV7"]) {
    const { bytecode } = artifact(contract);
    for (const [, wanted] of [...Object.values(SUBMIT), ...STABLE_SELECTORS]) {
      assert.ok(!bytecode.includes(wanted.slice(2)), `${contract}: ${wanted}`);
    }
  }
});

test("the_voucher_calls_have_the_selectors_of_the_page", () => {
  const { abi } = artifact("JobMarketplaceVouchers");
  const page = fs.readFileSync(path.resolve(__dirname, "../../docs/spec/contract.md"), "utf8");
  const said = [...page.matchAll(/^(0x[0-9a-f]{8})  (\w+)\(/gm)].map(([, hex, name]) => [name, hex]);
  assert.equal(said.length, 8);
  for (const [name, hex] of said) assert.equal(abi.getFunction(name).selector, hex, name);
});

test("a_marketplace_fits_into_the_size_that_chains_accept", () => {
  for (const { name, bytecode } of marketplaces) {
    assert.ok(bytecode.length / 2 < 24_576, `${name}: ${bytecode.length / 2} bytes`);
  }
});
