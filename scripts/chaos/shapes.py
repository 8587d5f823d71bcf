"""What differs between the contract's versions for whoever looks at it from outside.

Written from docs/spec/contract.md section 1 and docs/spec/proof.md ("Proof bytes"); nothing here
uses the node's code.
"""

import base64

SELECTOR_CREATE = {  # (is bound to a model, is paid in an ERC-20)
    (False, False): "366e2177", (False, True): "62c61f84",
    (True, False): "f4a8699e", (True, True): "b1af20be",
}
TOPIC_PROOF_BYTES = "0xb4c5c92500782d044d3f3d15b5bdc795913a997874aa9ba898f5b24754d4b7f8"
TOPIC_PROOF_CID = "0x0b81f46766672facece96cfcc36bf38c5d7b862ba7174b1ac0b33864b18d3dea"
TOPIC_PROOF_CID_DELTA = "0x330d363d69efddb2c24b4f13b34a8f73f88fcc6e07c6b64e8f0c51e78d0d7702"
DURATION_MAX = 31_536_000
SILENCE_MAX = 3600  # v7: the longest that it takes
CID_HEAD = bytes([1, 0x55, 0, 113])  # CIDv1, raw, identity, length of what follows


class Shape:
    """One version's session getter, claim and opening."""

    def __init__(self, version):
        # (words of sessionJobs that tell tokensUsed and status, topic, argument with the proof)
        self.tokens_used, self.status, self.topic, self.proof_argument = {
            "v3a": (6, 11, TOPIC_PROOF_BYTES, 2),
            "v3": (7, 12, TOPIC_PROOF_BYTES, 2),
            "v4": (7, 12, TOPIC_PROOF_CID, 3),
            "v4-late": (7, 12, TOPIC_PROOF_CID, 3),
            "v5": (6, 11, TOPIC_PROOF_CID, 4),
            "v6": (6, 11, TOPIC_PROOF_CID_DELTA, 4),
            "v7": (6, 12, TOPIC_PROOF_CID_DELTA, 3),
        }[version]
        self.is_model_bound = version == "v7"

    def opening(self, host, terms, model, token):
        """Call data that opens a session; `terms` are price, deposit and what it buys."""
        price, deposit, tokens = terms
        words = [int(host, 16)]
        if self.is_model_bound:
            words.append(int(model, 16))
        if token is not None:
            words += [int(token, 16), deposit]
        # Before v7, silence of three times as many seconds lets anybody end it; nobody does here.
        words += [price, DURATION_MAX, tokens]
        if self.is_model_bound:
            words.append(SILENCE_MAX)
        return call(SELECTOR_CREATE[self.is_model_bound, token is not None], *words)

    def cumulative(self, claim):
        """The running total that a claim's proof commits to, from the claim's call data."""
        at = 4 + 32 * self.proof_argument
        at = 4 + int.from_bytes(claim[at:at + 32], "big")
        size = int.from_bytes(claim[at:at + 32], "big")
        proof = claim[at + 32:at + 32 + size]
        if self.topic != TOPIC_PROOF_BYTES:
            # The first word is an argument of its own; the content id holds the rest.
            proof = bytes(32) + content(proof)
        return int.from_bytes(proof[34:42], "big")


def content(identifier):
    """What an inline content id holds."""
    if identifier[:1] != b"u":
        raise ValueError(f"no base64url content id: {identifier!r}")
    raw = base64.urlsafe_b64decode(identifier[1:] + b"=" * (-(len(identifier) - 1) % 4))
    if raw[:4] != CID_HEAD:
        raise ValueError(f"no inline content of a proof: {raw[:4].hex()}")
    return raw[4:]


def call(selector, *words):
    """Call data of a function without texts."""
    return "0x" + selector + "".join(f"{word:064x}" for word in words)
