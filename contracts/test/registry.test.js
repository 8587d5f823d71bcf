// Hosts and models, docs/spec/contract.md section 4, in the three shapes of the node registry.
"use strict";

const assert = require("node:assert/strict");
const test = require("node:test");
const { ethers } = require("../chain.js");
const { version } = require("../versions.js");
const { versionTests } = require("./support.js");

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

versionTests(test, ["v3", "v5", "v7"], (rule, name) => {
  const { pricedHosts } = version(name);
  const prices = pricedHosts ? [2000n, 3000n] : [];

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
    const unknown = [ethers.ZeroHash, true];
    await w.reverts("Unknown model", w.deployer, MODELS, "setModelApproval", unknown);
  });

  rule("a_host_registers_with_stake_and_approved_models", async (w) => {
    await prepared(w);
    const register = (metadata, url, models) =>
      w.transact(w.host, NODES, "registerNode", [metadata, url, models, ...prices]);
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
      [w.host, STAKE, true, '{"location":"x"}', "http://h", [MODEL], ...prices]);
    const stranger = await w.read(NODES, "getNodeFullInfo", w.stranger);
    assert.deepEqual(stranger.toArray(true),
      [ethers.ZeroAddress, 0n, false, "", "", [], ...prices.map(() => 0n)]);
  });

  rule("a_stake_one_unit_short_registers_nobody", async (w) => {
    await prepared(w, STAKE - 1n);
    await w.reverts("Token transfer failed", w.host, NODES, "registerNode",
      ["{}", "http://h", [MODEL], ...prices]);
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
    await w.ok(w.host, NODES, "registerNode", ["{}", "http://h", [MODEL], ...prices]);
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
}, { registered: false });

versionTests(test, ["v5", "v7"], (rule) => {
  rule("a_host_registers_with_two_prices_which_are_read_back_while_it_is_active", async (w) => {
    await prepared(w);
    const register = (native, stable) =>
      w.transact(w.host, NODES, "registerNode", ["{}", "http://h", [MODEL], native, stable]);
    assert.equal((await register(0n, 1n)).reason, "Invalid price");
    assert.equal((await register(1n, 0n)).reason, "Invalid price");
    const registered = await register(1n, 2n);
    assert.deepEqual(w.events(NODES, registered.logs).at(-1),
      ["PricingUpdated(address,uint256,uint256)", w.host, 1n, 2n]);
    const read = (token) => w.read(NODES, "getNodePricing", w.host, token);
    assert.equal(await read(ethers.ZeroAddress), 1n);
    assert.equal(await read(w.addresses.token), 2n);
    await w.ok(w.host, NODES, "unregisterNode", []);
    assert.equal(await read(ethers.ZeroAddress), 0n);
    assert.equal(await read(w.addresses.token), 0n);
  });
}, { registered: false });
