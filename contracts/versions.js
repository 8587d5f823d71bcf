// What differs between the versions of the marketplace, for whoever deploys one or talks to one:
// docs/spec/contract.md, section 1. It holds no address: those are always given. Relies on nothing.
"use strict";

const EARLY = {
  node_registry: "NodeRegistry",
  model_registry: "ModelRegistry",
  proof_system: "ProofSystem",
  /** Parts of a payment unit in which prices are given. */
  pricePrecision: 1n,
  /** Seconds that deploy.js sets where nobody asks for others. */
  disputeWindow: 30n,
  /** Whether `registerNode` takes two prices. */
  pricedHosts: false,
  /** Whether each session is bound to a model. */
  modelBound: false,
  /** Whether a session may pay by vouchers alone. */
  vouchers: false,
};
const LATER = {
  ...EARLY,
  node_registry: "NodeRegistryV5",
  pricePrecision: 1000n,
  pricedHosts: true,
};

/** By version: the contracts' names in contracts/abi, and the above. */
const VERSIONS = {
  v3a: { ...EARLY, job_marketplace: "JobMarketplaceV3a", disputeWindow: 3600n },
  // Ours: v3a, and voucher sessions beside its own.
  vouchers: {
    ...EARLY,
    job_marketplace: "JobMarketplaceVouchers",
    disputeWindow: 3600n,
    vouchers: true,
  },
  v3: { ...EARLY, job_marketplace: "JobMarketplace" },
  v4: { ...EARLY, job_marketplace: "JobMarketplaceV4" },
  "v4-late": { ...EARLY, job_marketplace: "JobMarketplaceV4Late", pricePrecision: 1000n },
  v5: { ...LATER, job_marketplace: "JobMarketplaceV5" },
  v6: { ...LATER, job_marketplace: "JobMarketplaceV6" },
  v7: {
    ...LATER,
    job_marketplace: "JobMarketplaceV7",
    node_registry: "NodeRegistryV7",
    model_registry: "ModelRegistryV7",
    proof_system: "ProofSystemV7",
    modelBound: true,
  },
};
const DEFAULT_VERSION = "v3";

/** The entry of a version; throws where there is none. */
function version(name) {
  if (!Object.hasOwn(VERSIONS, name)) {
    throw new Error(`contract versions are ${Object.keys(VERSIONS).join(", ")}; found: ${name}`);
  }
  return VERSIONS[name];
}

module.exports = { DEFAULT_VERSION, VERSIONS, version };
