// Opens sessions on a running chain, in the form that its marketplace wants. It must never send a
// deposit to an address that it did not recognise: the payable fallback would keep it. Relies on
// chain.js, and on logs of the stand-ins to find their token and their model.
"use strict";

const chain = require("./chain.js");
const { VERSIONS } = require("./versions.js");

const { ethers } = chain;

/** What tells our voucher contract from v3a, which it is otherwise. */
const VOUCHER_SESSION = ethers.id("isVoucherSession(uint256)").slice(0, 10);

/** Versions that the code at an address can be, told by selectors: v3a and v3 look alike. */
async function versionsAt(rpc, address) {
  const code = await rpc("eth_getCode", address, "latest");
  // A transfer to a plain account would succeed, and the deposit would be gone.
  if (code === "0x") throw new Error(`no contract at --marketplace ${address}`);
  const has = (selector) => code.includes(selector.slice(2));
  const fits = ([, traits]) => {
    const claim = chain.artifact(traits.job_marketplace).abi.getFunction("submitProofOfWork");
    const thousandths = has(ethers.id("PRICE_PRECISION()").slice(0, 10));
    return has(claim.selector) && has(VOUCHER_SESSION) === traits.vouchers
      && thousandths === (traits.pricePrecision !== 1n);
  };
  return Object.entries(VERSIONS).filter(fits).map(([name]) => name);
}

/** The version at an address; `wanted` has to be possible where it is given. */
async function versionAt(rpc, address, wanted) {
  const found = await versionsAt(rpc, address);
  if (found.length === 0) {
    throw new Error(`--marketplace ${address} is no JobMarketplace: it has no claim that is known`);
  }
  if (wanted !== undefined && !found.includes(wanted)) {
    throw new Error(`--contract ${wanted}, but --marketplace is ${found.join(" or ")}`);
  }
  return wanted ?? found.at(-1);
}

/** The first token that a stand-in marketplace accepted. */
async function acceptedToken(rpc, marketplace) {
  const { abi } = chain.artifact("JobMarketplace");
  return firstTopic(rpc, marketplace, abi.getEvent("TokenAccepted"), (topic) =>
    ethers.getAddress(ethers.dataSlice(topic, 12)));
}

/** The first model that the registry of a v7 marketplace knows. */
async function registeredModel(rpc, marketplace) {
  const { abi } = chain.artifact("JobMarketplaceV7");
  const data = abi.encodeFunctionData("modelRegistry");
  const answer = await rpc("eth_call", { to: marketplace, data }, "latest");
  const [registry] = abi.decodeFunctionResult("modelRegistry", answer);
  const event = chain.artifact("ModelRegistryV7").abi.getEvent("ModelAdded");
  return firstTopic(rpc, registry, event, (topic) => topic);
}

async function firstTopic(rpc, address, event, decode) {
  const filter = { address, fromBlock: "earliest", toBlock: "latest", topics: [event.topicHash] };
  const [log] = await rpc("eth_getLogs", filter);
  if (!log) throw new Error(`${address} has emitted no ${event.name}`);
  return decode(log.topics[1]);
}

/**
 * Queues a session and resolves with the hash to wait for. `terms`: { marketplace, version, host,
 * deposit, price, maxDuration, proofInterval } as bigint, and where they apply `token`, `fund`
 * (mint and approve the deposit first: a test token), `model`, `window`, `vouchers` (a session
 * that pays by vouchers alone).
 */
async function queueSession(rpc, key, terms) {
  const traits = VERSIONS[terms.version];
  const { abi } = chain.artifact(traits.job_marketplace);
  const signer = new chain.Signer(rpc, key);
  if (terms.fund) await fund(rpc, signer, terms);
  const native = terms.token === undefined;
  const plain = traits.modelBound ? "createSessionJobForModel" : "createSessionJob";
  const opening = terms.vouchers ? "createVoucherSession" : plain;
  const method = native ? opening : `${opening}WithToken`;
  const data = abi.encodeFunctionData(method, [
    terms.host,
    ...(traits.modelBound ? [terms.model] : []),
    ...(native ? [] : [terms.token, terms.deposit]),
    terms.price, terms.maxDuration, terms.proofInterval,
    ...(traits.modelBound ? [terms.window] : []),
  ]);
  const tx = { to: terms.marketplace, data, value: native ? terms.deposit : 0n };
  await check(rpc, signer.address, tx);
  return signer.send({ ...tx, gas: chain.CALL_GAS });
}

/** Queues what makes a depositor able to pay in a test token. */
async function fund(rpc, signer, { token, marketplace, deposit }) {
  const { abi } = chain.artifact("TestToken");
  for (const [method, to] of [["mint", signer.address], ["approve", marketplace]]) {
    const tx = { to: token, data: abi.encodeFunctionData(method, [to, deposit]), value: 0n };
    await check(rpc, signer.address, tx);
    await signer.send({ ...tx, gas: chain.CALL_GAS });
  }
}

/** Simulates, so that a refusal names its reason instead of "failed on chain". */
async function check(rpc, from, { to, data, value }) {
  try {
    await rpc("eth_call", { from, to, data, value: ethers.toQuantity(value) }, "pending");
  } catch (error) {
    if (!(error instanceof chain.RpcError)) throw error;
    throw new Error(`the contract refuses: ${chain.revertReason(error.data) || error.message}`);
  }
}

/** Id of the session that a mined transaction opened. */
function openedJob(receipt) {
  const { abi } = chain.artifact("JobMarketplace");
  const opened = receipt.logs
    .map((log) => abi.parseLog(log))
    .find((event) => event?.name === "SessionJobCreated");
  if (!opened) throw new Error("no session was opened: is --marketplace a JobMarketplace?");
  return Number(opened.args.jobId);
}

module.exports = { acceptedToken, openedJob, queueSession, registeredModel, versionAt };
