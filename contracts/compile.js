// Compiles contracts/src/**.sol with the pinned npm solc and writes, for each deployable contract,
// contracts/abi/NAME.json {contractName, abi} and contracts/bytecode/NAME.json {contractName,
// bytecode, deployedBytecode, solc}. Relies on tools/node_modules (scripts/compile-contracts.sh
// installs it). It must never write a file that another run would not write byte for byte.
//
//   node contracts/compile.js            writes the files
//   node contracts/compile.js --check    exits 1 where the committed files differ
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const { createRequire } = require("node:module");

const ROOT = path.resolve(__dirname, "..");
const SOURCES = path.join(__dirname, "src");
const CONTRACTS = [
  "JobMarketplace",
  "JobMarketplaceV3a",
  "JobMarketplaceVouchers",
  "JobMarketplaceV4",
  "JobMarketplaceV4Late",
  "JobMarketplaceV5",
  "JobMarketplaceV6",
  "JobMarketplaceV7",
  "HostEarnings",
  "NodeRegistry",
  "NodeRegistryV5",
  "NodeRegistryV7",
  "ModelRegistry",
  "ModelRegistryV7",
  "ProofSystem",
  "ProofSystemV7",
  "TestToken",
  "testing/ContractWallet",
  "testing/FreezableToken",
  "testing/RefusingDepositor",
  "testing/RepriceableNodeRegistry",
];
const SETTINGS = {
  evmVersion: "cancun",
  viaIR: true,
  optimizer: { enabled: true, runs: 200 },
  // Nothing of the compiling machine or of comments enters the bytecode.
  metadata: { bytecodeHash: "none", appendCBOR: false },
  outputSelection: { "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object"] } },
};

/** Sources by their path relative to contracts/src, in a fixed order. */
function readSources(folder = SOURCES, prefix = "") {
  const found = {};
  const entries = fs.readdirSync(folder, { withFileTypes: true });
  for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const name = prefix + entry.name;
    if (entry.isDirectory()) {
      Object.assign(found, readSources(path.join(folder, entry.name), `${name}/`));
    } else if (name.endsWith(".sol")) {
      found[name] = { content: fs.readFileSync(path.join(folder, entry.name), "utf8") };
    }
  }
  return found;
}

/** Compiler output; a warning counts as an error, as nobody reads warnings twice. */
function compile(solc) {
  const input = { language: "Solidity", sources: readSources(), settings: SETTINGS };
  const output = JSON.parse(solc.compile(JSON.stringify(input)));
  const problems = (output.errors ?? []).filter((e) => e.severity !== "info");
  if (problems.length > 0) {
    throw new Error(problems.map((e) => e.formattedMessage).join("\n"));
  }
  return output.contracts;
}

/** Text of each generated file, by its path relative to the repository. */
function generate() {
  const solc = createRequire(path.join(ROOT, "tools/package.json"))("solc");
  const contracts = compile(solc);
  const files = {};
  for (const source of CONTRACTS) {
    const contractName = path.basename(source);
    const { abi, evm } = contracts[`${source}.sol`][contractName];
    files[`contracts/abi/${contractName}.json`] = { contractName, abi };
    files[`contracts/bytecode/${contractName}.json`] = {
      contractName,
      bytecode: `0x${evm.bytecode.object}`,
      deployedBytecode: `0x${evm.deployedBytecode.object}`,
      solc: solc.version(),
    };
  }
  for (const [file, value] of Object.entries(files)) {
    files[file] = `${JSON.stringify(value, null, 2)}\n`;
  }
  return files;
}

/** Committed files that differ from `files`, are missing, or should not be there. */
function differences(files) {
  const differing = Object.entries(files)
    .filter(([file, text]) => {
      const full = path.join(ROOT, file);
      return !fs.existsSync(full) || fs.readFileSync(full, "utf8") !== text;
    })
    .map(([file]) => file);
  const stale = ["contracts/abi", "contracts/bytecode"].flatMap((folder) =>
    fs.existsSync(path.join(ROOT, folder))
      ? fs.readdirSync(path.join(ROOT, folder)).map((name) => `${folder}/${name}`)
      : [],
  );
  return differing.concat(stale.filter((file) => !(file in files)));
}

function main(args) {
  if (args.some((a) => a !== "--check") || args.length > 1) {
    throw new Error(`usage: compile.js [--check], found: ${args.join(" ")}`);
  }
  const files = generate();
  if (args.includes("--check")) {
    const differing = differences(files);
    if (differing.length > 0) {
      throw new Error(`not what the sources compile to: ${differing.join(", ")}`);
    }
    console.log(`${Object.keys(files).length} files are what the sources compile to`);
    return;
  }
  for (const [file, text] of Object.entries(files)) {
    fs.mkdirSync(path.dirname(path.join(ROOT, file)), { recursive: true });
    fs.writeFileSync(path.join(ROOT, file), text);
  }
  console.log(`${Object.keys(files).length} files written`);
}

try {
  main(process.argv.slice(2));
} catch (error) {
  console.error(`compile.js: ${error.message}`);
  process.exit(1);
}
