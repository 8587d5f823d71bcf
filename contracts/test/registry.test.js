// Hosts and models, docs/spec/contract.md section 4.
"use strict";

const assert = require("node:assert/strict");
const test = require("node:test");
const { ethers } = require("../chain.js");
const { worldTests } = require("./support.js");

const rule = worldTests(test);
const STAKE = 1000n * 10n ** 18n;
const HASH = ethers.sha256("0x00");
const NODES = "node_registry";
const MODELS = "model_registry";

const modelId = (repo, file) => ethers.keccak256(ethers.toUtf8Bytes(`${repo}/${file}`));
const MODEL = modelId("org/repo", "weights.gguf");

/** Adds the model and gives the host its stake, approved. */
async function prepared(w, stake = STAKE) {
  await w.ok(w.deployer, MODELS, "addTrustedModel", ["org/repo", "weights.gguf", HASH]);
  await w.ok(w.host, "token", "mint", [w.host, stake]);
  await w.ok(w.host, "token", "approve", [w.addresses.node_registry, stake]);
}

rule("a_model_id_is_the_hash_of_repo_slash_file", async (w) => {
  assert.equal(await w.read(MODELS, "getModelId", "org/repo", "weights.gguf"), MODEL);
  assert.equal(await w.read(MODELS, "isModelApproved", MODEL), false);
  assert.equal(await w.read(MODELS, "getModelHash", MODEL), ethers.ZeroHash);
  await w.ok(w.deployer, MODELS, "addTrustedModel", ["org/repo", "weights.gguf", HASH]);
  assert.equal(await w.read(MODELS, "isModelApproved", MODEL), true);
  assert.equal(await w.read(MODELS, "getModelHash", MODEL), HASH);
  await w.ok(w.deployer, MODELS, "setModelApproval", [MODEL, false]);
  assert.equal(await w.read(MODELS, "isModelApproved", MODEL), false);
});

rule("models_are_added_once_by_the_owner_with_a_hash", async (w) => {
  const args = ["org/repo", "weights.gguf", HASH];
  await w.reverts("Not owner", w.stranger, MODELS, "addTrustedModel", args);
  await w.reverts("Empty model hash", w.deployer, MODELS, "addTrustedModel",
    ["org/repo", "weights.gguf", ethers.ZeroHash]);
  await w.reverts("Empty model name", w.deployer, MODELS, "addTrustedModel", ["", "f", HASH]);
  await w.ok(w.deployer, MODELS, "addTrustedModel", args);
  await w.reverts("Model exists", w.deployer, MODELS, "addTrustedModel", args);
  await w.reverts("Unknown model", w.deployer, MODELS, "setModelApproval", [ethers.ZeroHash, true]);
});

rule("a_host_registers_with_stake_and_approved_models", async (w) => {
  await prepared(w);
  const register = (metadata, url, models) =>
    w.transact(w.host, NODES, "registerNode", [metadata, url, models]);
  assert.equal((await register("", "http://h", [MODEL])).reason, "Empty metadata");
  assert.equal((await register("{}", "", [MODEL])).reason, "Empty API URL");
  assert.equal((await register("{}", "http://h", [])).reason, "No models");
  const other = modelId("org/repo", "other.gguf");
  assert.equal((await register("{}", "http://h", [MODEL, other])).reason, "Model not approved");
  assert.equal(await w.read(NODES, "isActiveNode", w.host), false);

  assert.ok((await register('{"location":"x"}', "http://h", [MODEL])).ok);
  assert.equal((await register("{}", "http://h", [MODEL])).reason, "Already registered");
  assert.equal(await w.read(NODES, "isActiveNode", w.host), true);
  assert.equal(await w.read(NODES, "getNodeApiUrl", w.host), "http://h");
  assert.equal(await w.read(NODES, "nodeSupportsModel", w.host, MODEL), true);
  assert.equal(await w.read("token", "balanceOf", w.host), 0n);
  const info = await w.read(NODES, "getNodeFullInfo", w.host);
  assert.deepEqual(info.toArray(true),
    [w.host, STAKE, true, '{"location":"x"}', "http://h", [MODEL]]);
});

rule("a_stake_one_unit_short_registers_nobody", async (w) => {
  await prepared(w, STAKE - 1n);
  await w.reverts("Token transfer failed", w.host, NODES, "registerNode",
    ["{}", "http://h", [MODEL]]);
  assert.equal(await w.read(NODES, "isActiveNode", w.host), false);
});

rule("a_host_updates_itself_and_gets_its_stake_back_when_it_leaves", async (w) => {
  await prepared(w);
  for (const [method, args] of [
    ["updateApiUrl", ["http://x"]], ["updateMetadata", ["{}"]],
    ["updateSupportedModels", [[MODEL]]], ["unregisterNode", []],
  ]) {
    await w.reverts("Not registered", w.host, NODES, method, args);
  }
  await w.ok(w.host, NODES, "registerNode", ["{}", "http://h", [MODEL]]);
  await w.ok(w.host, NODES, "updateApiUrl", ["http://new"]);
  await w.ok(w.host, NODES, "updateMetadata", ['{"a":1}']);
  const second = modelId("org/repo", "second.gguf");
  await w.ok(w.deployer, MODELS, "addTrustedModel", ["org/repo", "second.gguf", HASH]);
  await w.ok(w.host, NODES, "updateSupportedModels", [[second]]);
  assert.equal(await w.read(NODES, "getNodeApiUrl", w.host), "http://new");
  assert.equal(await w.read(NODES, "nodeSupportsModel", w.host, MODEL), false);
  assert.equal(await w.read(NODES, "nodeSupportsModel", w.host, second), true);
  await w.ok(w.host, NODES, "unregisterNode", []);
  assert.equal(await w.read(NODES, "isActiveNode", w.host), false);
  assert.equal(await w.read(NODES, "nodeSupportsModel", w.host, second), false);
  assert.equal(await w.read("token", "balanceOf", w.host), STAKE);
});

rule("settings_belong_to_the_owner", async (w) => {
  const { token, proof_system: proofs } = w.addresses;
  for (const [contract, method, args] of [
    ["job_marketplace", "setProofSystem", [proofs]],
    ["job_marketplace", "addAcceptedToken", [token, 1n]],
    ["job_marketplace", "transferOwnership", [w.stranger]],
    ["host_earnings", "setAuthorizedCaller", [w.stranger, true]],
  ]) {
    await w.reverts("Not owner", w.stranger, contract, method, args);
  }
  await w.ok(w.deployer, "job_marketplace", "transferOwnership", [w.stranger]);
  await w.ok(w.stranger, "job_marketplace", "setProofSystem", [proofs]);
});
