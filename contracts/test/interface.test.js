// Every selector and topic that docs/spec/contract.md names: against the hash of its signature,
// and for v3 against the committed ABI and the bytecode.
"use strict";

const assert = require("node:assert/strict");
const test = require("node:test");
const { artifact, ethers } = require("../chain.js");

const marketplace = artifact("JobMarketplace");

/** submitProofOfWork by version (section 1). */
const SUBMIT = {
  v3: ["submitProofOfWork(uint256,uint256,bytes)", "0xc8c664ee"],
  v4: ["submitProofOfWork(uint256,uint256,bytes32,string)", "0xace083b3"],
  v5: ["submitProofOfWork(uint256,uint256,bytes32,bytes,string)", "0x8dbe53aa"],
  v6: ["submitProofOfWork(uint256,uint256,bytes32,bytes,string,string)", "0x3338f1e5"],
  v7: ["submitProofOfWork(uint256,uint256,bytes32,string,string)", "0x7c5cb561"],
};

/** Functions of v3 whose selectors the page gives. */
const V3_SELECTORS = [
  SUBMIT.v3,
  ["completeSessionJob(uint256,string)", "0x040138dd"],
  ["triggerSessionTimeout(uint256)", "0x14a4ffa5"],
  ["sessionJobs(uint256)", "0xef39d372"],
  ["nextJobId()", "0xb0c2aa5e"],
  ["createSessionJob(address,uint256,uint256,uint256)", "0x366e2177"],
];

/** Functions that the page names without a selector, by contract. */
const V3_FUNCTIONS = {
  JobMarketplace: [
    "hostSessions(address,uint256)",
    "hostEarnings()",
    "nodeRegistry()",
    "proofSystem()",
    "MIN_PROVEN_TOKENS()",
    "MIN_DEPOSIT()",
    "DISPUTE_WINDOW()",
    "FEE_BASIS_POINTS()",
    "createSessionJobWithToken(address,address,uint256,uint256,uint256,uint256)",
    "createSessionFromDeposit(address,address,uint256,uint256,uint256,uint256)",
  ],
  HostEarnings: [
    "creditEarnings(address,uint256,address)",
    "getBalance(address,address)",
    "withdraw(uint256,address)",
    "withdrawAll(address)",
  ],
  NodeRegistry: [
    "registerNode(string,string,bytes32[])",
    "isActiveNode(address)",
    "getNodeApiUrl(address)",
    "getNodeFullInfo(address)",
    "nodeSupportsModel(address,bytes32)",
    "updateApiUrl(string)",
    "updateMetadata(string)",
    "updateSupportedModels(bytes32[])",
    "unregisterNode()",
  ],
  ModelRegistry: ["isModelApproved(bytes32)", "getModelHash(bytes32)"],
};

const V3_EVENTS = [
  [
    "SessionJobCreated(uint256,address,address,uint256)",
    "0x513b4fec3e6ae39000befae860b986c341242d8f5137c9ffafc229557420c42f",
    [true, true, true, false],
  ],
  [
    "SessionCompleted(uint256,uint256,uint256,uint256)",
    "0xdc98ea7ca5b8998396967b6d0c1da6e05a17b467b15bdda0f07f6b84dfd31e71",
    [true, false, false, false],
  ],
  [
    "SessionCompleted(uint256,address,uint256,uint256,uint256)",
    undefined,
    [true, true, false, false, false],
  ],
  [
    "SessionTimedOut(uint256,uint256,uint256)",
    "0xfa2b97569bd8b93c0adf89bf1f6903b10d258aec3bbfc759b7656034179660da",
    [true, false, false],
  ],
  [
    "ProofSubmitted(uint256,address,uint256,bytes32)",
    "0xb4c5c92500782d044d3f3d15b5bdc795913a997874aa9ba898f5b24754d4b7f8",
    [true, true, false, false],
  ],
];

/** Later shapes of ProofSubmitted; the page shortens the first. */
const LATER_TOPICS = [
  ["ProofSubmitted(uint256,address,uint256,bytes32,string)", "0x0b81f467"],
  [
    "ProofSubmitted(uint256,address,uint256,bytes32,string,string)",
    "0x330d363d69efddb2c24b4f13b34a8f73f88fcc6e07c6b64e8f0c51e78d0d7702",
  ],
];

const V3_SESSION = [
  "uint256 id", "address depositor", "address requester", "address host", "address paymentToken",
  "uint256 deposit", "uint256 pricePerToken", "uint256 tokensUsed", "uint256 maxDuration",
  "uint256 startTime", "uint256 lastProofTime", "uint256 proofInterval", "uint8 status",
  "uint256 withdrawnByHost", "uint256 refundedToUser", "string conversationCID",
];

test("each_versions_submit_selector_is_its_signatures_hash", () => {
  for (const [version, [signature, selector]] of Object.entries(SUBMIT)) {
    assert.equal(ethers.id(signature).slice(0, 10), selector, version);
  }
});

test("the_v3_selectors_are_in_the_abi_and_in_the_bytecode", () => {
  for (const [signature, selector] of V3_SELECTORS) {
    assert.equal(marketplace.abi.getFunction(signature)?.selector, selector, signature);
    assert.ok(marketplace.bytecode.includes(selector.slice(2)), `${selector} in the bytecode`);
  }
});

test("no_later_versions_submit_is_there", () => {
  for (const version of ["v4", "v5", "v6", "v7"]) {
    const [signature, selector] = SUBMIT[version];
    assert.equal(marketplace.abi.getFunction(signature), null);
    assert.ok(!marketplace.bytecode.includes(selector.slice(2)), version);
  }
  assert.equal(marketplace.abi.getFunction("PRICE_PRECISION"), null, "v3 has no price unit");
});

test("every_function_that_the_page_names_is_there", () => {
  for (const [contract, signatures] of Object.entries(V3_FUNCTIONS)) {
    const { abi } = artifact(contract);
    for (const signature of signatures) {
      assert.ok(abi.getFunction(signature) !== null, `${contract}.${signature}`);
    }
  }
});

test("the_v3_topics_and_indexed_fields_are_in_the_abi", () => {
  for (const [signature, topic, indexed] of V3_EVENTS) {
    const event = marketplace.abi.getEvent(signature);
    assert.ok(event !== null, signature);
    assert.equal(ethers.id(signature), topic ?? event.topicHash);
    assert.equal(event.topicHash, ethers.id(signature));
    assert.deepEqual(event.inputs.map((input) => input.indexed === true), indexed, signature);
  }
  for (const [signature, topic] of LATER_TOPICS) {
    assert.ok(ethers.id(signature).startsWith(topic), signature);
  }
});

test("a_session_reads_as_the_16_outputs_of_v3", () => {
  const outputs = marketplace.abi.getFunction("sessionJobs").outputs;
  assert.deepEqual(outputs.map((o) => `${o.type} ${o.name}`), V3_SESSION);
});

test("the_marketplace_takes_value_without_and_with_an_unknown_selector", () => {
  assert.equal(marketplace.abi.receive, true);
  assert.equal(marketplace.abi.fallback?.payable, true);
  assert.equal(marketplace.abi.getFunction("createSessionJob").payable, true);
});

test("the_proof_system_taken_for_the_marketplace_lacks_its_selectors", () => {
  const { bytecode } = artifact("ProofSystem");
  for (const [, selector] of V3_SELECTORS) {
    assert.ok(!bytecode.includes(selector.slice(2)), selector);
  }
});
