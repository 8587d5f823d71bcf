"""A model of TinyLlama's shape (1.1 billion weights) with random weights, for speed alone.

    random_model.py VOCABULARY.gguf OUT.gguf        wants the packages gguf and numpy

The vocabulary and its rules are taken from another GGUF file, because both engines refuse a model
without. Weights are normal with a deviation of 0.02, by seed, in half precision; llama-quantize
makes the other formats of them. scripts/bench/models.sh runs it.
"""

import sys

import gguf
import numpy

LAYERS, WIDTH, FF, HEADS, KV_HEADS, CONTEXT = 22, 2048, 5632, 32, 4, 2048
SEED = 11


def copy_vocabulary(source, writer):
    """Copies every tokenizer key."""
    for name, field in gguf.GGUFReader(source).fields.items():
        if not name.startswith("tokenizer."):
            continue
        value = field.contents()
        kind = field.types[0]
        element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, kind, sub_type=element)


def weights(rng, rows, cols):
    """One matrix; generated in half precision to keep memory low."""
    return (rng.standard_normal((rows, cols), dtype=numpy.float32) * 0.02).astype(numpy.float16)


def main():
    source, out = sys.argv[1:]
    fields = gguf.GGUFReader(source).fields
    vocabulary = len(fields["tokenizer.ggml.tokens"].data)
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_name("random-1.1b")
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_context_length(CONTEXT)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    copy_vocabulary(source, writer)
    rng = numpy.random.default_rng(SEED)
    kv_width = WIDTH // HEADS * KV_HEADS
    ones = numpy.ones(WIDTH, dtype=numpy.float32)
    writer.add_tensor("token_embd.weight", weights(rng, vocabulary, WIDTH))
    writer.add_tensor("output.weight", weights(rng, vocabulary, WIDTH))
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(LAYERS):
        shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (kv_width, WIDTH),
                  "attn_v": (kv_width, WIDTH), "attn_output": (WIDTH, WIDTH),
                  "ffn_gate": (FF, WIDTH), "ffn_up": (FF, WIDTH), "ffn_down": (WIDTH, FF)}
        for name, shape in shapes.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", weights(rng, *shape))
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", ones)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
