// Known answers: everything that is hashed and signed, as an independent program says
// (tests/fixtures/proof/make.py).

import assert from "node:assert/strict";
import { test } from "node:test";
import { hex, unhex } from "../bytes.js";
import { voucherDigest } from "../eip712.js";
import type { SumNode } from "../preimage.js";
import { decodeSpec, derivedSeed, joined, modelSpec, tokenizerSpec } from "../preimage.js";
import { decodeProof, encodeProof } from "../proof.js";
import { recoverSigner } from "../signature.js";
import type { Step } from "../transcript.js";
import { SumTree, Transcript, closedChunks } from "../transcript.js";
import { fixture } from "./fixtures.js";

interface VectorSpecs {
  decode: {
    temperature: number;
    top_k: number;
    top_p: number;
    min_p: number;
    repetition_penalty: number;
    max_tokens: number;
    stop: string[];
    frequency_penalty?: number;
    presence_penalty?: number;
    logit_bias?: Record<string, number>;
    ignore_eos?: boolean;
    digest: string;
  }[];
  model: Record<"weights" | "quantisation" | "architecture" | "digest" | "tokenizer", string>;
  seed: { host: string; user: string; turn: number; digest: string };
}

interface VectorTurn {
  turn: number;
  model_spec: string;
  tokenizer_spec: string;
  decode_spec: string;
  engine_spec: number;
  seed: string;
  prompt_ids: number[];
}

type VectorStep =
  | ["start", VectorTurn]
  | ["ids", { turn: number; ids: number[]; states?: string[] }]
  | ["end", { turn: number }]
  | ["claim", { seq: number; tokens: number }];

interface VectorTranscript {
  job: string;
  steps: VectorStep[];
  claims: { seq: number; tokens: number; top: string; root: string }[];
  total: number;
  top: string;
}

interface VectorVoucher {
  job: string;
  tokens: string;
  seq: number;
  root: string;
  model: string;
  chain_id: string;
  contract: string;
  digest: string;
  signature: string;
  flags: number;
  salt: number;
  proof: string;
}

const vectors = fixture<{
  specs: VectorSpecs;
  transcripts: VectorTranscript[];
  vouchers: VectorVoucher[];
}>("tests/fixtures/proof/vectors.json");

/** The address of the vectors' key, 32 times 0x01. */
const SIGNER = "0x1a642f0e3c3af545e7acbd38b07251b3990914f1";

test("specs and seeds hash as the independent program says", () => {
  for (const spec of vectors.specs.decode) {
    const digest = decodeSpec({
      temperature: spec.temperature,
      topK: spec.top_k,
      topP: spec.top_p,
      minP: spec.min_p,
      repetitionPenalty: spec.repetition_penalty,
      maxTokens: spec.max_tokens,
      stop: spec.stop,
      frequencyPenalty: spec.frequency_penalty ?? 0,
      presencePenalty: spec.presence_penalty ?? 0,
      logitBias: Object.entries(spec.logit_bias ?? {})
        .map(([id, bias]) => [Number(id), bias] as const)
        .sort(([a], [b]) => a - b),
      ignoreEos: spec.ignore_eos ?? false,
    });
    assert.equal(hex(digest), spec.digest);
  }
  const { model, seed } = vectors.specs;
  const weights = unhex(model.weights);
  assert.equal(hex(modelSpec(weights, model.quantisation, model.architecture)), model.digest);
  assert.equal(hex(tokenizerSpec(weights)), model.tokenizer);
  assert.equal(hex(derivedSeed(unhex(seed.host), unhex(seed.user), seed.turn)), seed.digest);
});

/** The transcript of the first `tokens` tokens, claims cut at `cuts`. */
function transcriptOf(vector: VectorTranscript, tokens: number, cuts: number[]): Transcript {
  const transcript = new Transcript(BigInt(vector.job));
  const places = new Map<number, number>();
  const steps = vector.steps.flatMap((step): Step[] => {
    if (step[0] === "claim") return [];
    const turnNo = step[1].turn;
    if (step[0] === "end") return [{ kind: "end", turnNo }];
    if (step[0] === "ids") {
      const states = (step[1].states ?? []).map((state) => unhex(state));
      return [{ kind: "ids", turnNo, ids: step[1].ids, states }];
    }
    const turn = step[1];
    places.set(
      turnNo,
      transcript.begin({
        turnNo,
        modelSpec: unhex(turn.model_spec),
        tokenizerSpec: unhex(turn.tokenizer_spec),
        decodeSpec: unhex(turn.decode_spec),
        engineSpec: turn.engine_spec,
        seed: unhex(turn.seed),
        promptIds: Uint32Array.from(turn.prompt_ids),
      }),
    );
    return [{ kind: "start", turnNo }];
  });
  for (const chunk of closedChunks(steps, tokens, cuts)) {
    transcript.push(places.get(chunk.turnNo)!, chunk.ids, chunk.actDigest);
  }
  return transcript;
}

test("transcripts have the roots that the independent program says", () => {
  let claims = 0;
  for (const vector of vectors.transcripts) {
    const cuts: number[] = [];
    for (const claim of vector.claims) {
      const transcript = transcriptOf(vector, claim.tokens, cuts);
      assert.equal(transcript.tokens, claim.tokens);
      assert.equal(hex(transcript.top().hash), claim.top);
      assert.equal(hex(transcript.root(claim.seq)), claim.root);
      cuts.push(claim.tokens);
      claims += 1;
    }
    assert.equal(hex(transcriptOf(vector, vector.total, cuts).top().hash), vector.top);
  }
  assert.ok(claims > 10, `${claims}`);
});

test("vouchers and proof bytes are what wallets sign and contracts read", () => {
  for (const vector of vectors.vouchers) {
    const domain = { chainId: BigInt(vector.chain_id), marketplace: unhex(vector.contract) };
    const voucher = {
      jobId: BigInt(vector.job),
      cumTokens: BigInt(vector.tokens),
      seq: vector.seq,
      root: unhex(vector.root),
      model: unhex(vector.model),
    };
    const digest = voucherDigest(domain, voucher);
    assert.equal(hex(digest), vector.digest);
    const signature = unhex(vector.signature);
    assert.equal(hex(recoverSigner(digest, signature)), SIGNER);
    const { flags, salt } = vector;
    const bytes = encodeProof({ ...voucher, flags, salt, signature });
    assert.equal(hex(bytes), vector.proof);
    const read = decodeProof(bytes);
    assert.equal(hex(encodeProof(read)), vector.proof);
    assert.equal(read.cumTokens, voucher.cumTokens);
  }
  assert.equal(vectors.vouchers.length, 3);
});

/** The top as the text tells it: neighbours level by level, an odd one promoted. */
function topByLevels(level: SumNode[]): SumNode {
  if (level.length === 1) return level[0]!;
  const above: SumNode[] = [];
  for (let i = 0; i < level.length; i += 2) {
    const right = level[i + 1];
    above.push(right === undefined ? level[i]! : joined(level[i]!, right));
  }
  return topByLevels(above);
}

test("a tree that grows leaf by leaf is the tree that is built level by level", () => {
  const tree = new SumTree();
  const leaves: SumNode[] = [];
  for (let i = 0; i < 200; i++) {
    leaves.push({ hash: new Uint8Array(32).fill(i), tokens: 1 + (i % 32) });
    tree.push(leaves[i]!);
    const [wanted, found] = [topByLevels(leaves), tree.top()];
    assert.equal(hex(found.hash), hex(wanted.hash), `${i + 1} leaves`);
    assert.equal(found.tokens, wanted.tokens);
    assert.equal(tree.tokens, wanted.tokens);
  }
});
