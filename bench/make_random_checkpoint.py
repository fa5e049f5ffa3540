#!/usr/bin/env python3
# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0
"""Writes a Hugging Face checkpoint of a well-known shape with random weights, to measure speed with.

    python3 bench/make_random_checkpoint.py --shape llama-3.2-1b --output DIR
    python3 bench/make_random_checkpoint.py --shape mixtral-8x7b --layers 2 --output DIR

Shapes with experts have a dense twin, NAME-active: the same model whose feed-forward networks have the parameters that
one token meets. Needs numpy. Weights are bfloat16, normal, 0.02 wide; norms are one. The tokenizer is a byte-level BPE of the shape's
vocabulary size whose merges are made of letters by rule: it encodes any text, and English at three to four letters a
token, but what the model says means nothing. Memory stays below 200 MB; the same arguments write the same bytes.
"""
import argparse
import itertools
import json
import pathlib
import struct
import sys

import numpy

# num_heads * head_dim need not be hidden_size. `rope_scaling` as in the models' own config.json.
LLAMA3_ROPE = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}
SHAPES = {
    "llama-3.2-1b": dict(hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
                         intermediate_size=8192, vocab_size=128256, tie_word_embeddings=True, rope_theta=500000.0,
                         max_position_embeddings=131072, rope_scaling=dict(LLAMA3_ROPE, factor=32.0)),
    "llama-3.2-3b": dict(hidden_size=3072, num_hidden_layers=28, num_attention_heads=24, num_key_value_heads=8, head_dim=128,
                         intermediate_size=8192, vocab_size=128256, tie_word_embeddings=True, rope_theta=500000.0,
                         max_position_embeddings=131072, rope_scaling=dict(LLAMA3_ROPE, factor=32.0)),
    "llama-3-8b": dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
                       intermediate_size=14336, vocab_size=128256, tie_word_embeddings=False, rope_theta=500000.0,
                       max_position_embeddings=8192),
    "mixtral-8x7b": dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
                         intermediate_size=14336, vocab_size=32000, tie_word_embeddings=False, rope_theta=1000000.0,
                         max_position_embeddings=32768, rms_norm_eps=1e-5, sliding_window=None, num_local_experts=8,
                         num_experts_per_tok=2, architecture="MixtralForCausalLM"),
    "qwen3-30b-a3b": dict(hidden_size=2048, num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4, head_dim=128,
                          intermediate_size=6144, moe_intermediate_size=768, vocab_size=151936, tie_word_embeddings=False,
                          rope_theta=1000000.0, max_position_embeddings=40960, rms_norm_eps=1e-6, num_experts=128,
                          num_experts_per_tok=8, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[],
                          architecture="Qwen3MoeForCausalLM"),
    # Wide rows and little arithmetic: the share of communication that a large model has on hosts of many cores.
    "wide": dict(hidden_size=4096, num_hidden_layers=16, num_attention_heads=8, num_key_value_heads=4, head_dim=64,
                 intermediate_size=512, vocab_size=2048, tie_word_embeddings=True, rope_theta=10000.0,
                 max_position_embeddings=8192),
    "tiny-mixtral": dict(hidden_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
                         intermediate_size=256, vocab_size=2048, tie_word_embeddings=False, rope_theta=10000.0,
                         max_position_embeddings=2048, rms_norm_eps=1e-5, sliding_window=None, num_local_experts=8,
                         num_experts_per_tok=2, architecture="MixtralForCausalLM"),
    "tiny": dict(hidden_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
                 intermediate_size=512, vocab_size=2048, tie_word_embeddings=True, rope_theta=10000.0,
                 max_position_embeddings=2048),
}
EXPERT_KEYS = ("moe_intermediate_size", "num_local_experts", "num_experts", "num_experts_per_tok", "norm_topk_prob",
               "decoder_sparse_step", "mlp_only_layers")
MODEL_TYPES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral", "MixtralForCausalLM": "mixtral",
               "Qwen3ForCausalLM": "qwen3", "Qwen3MoeForCausalLM": "qwen3_moe"}
DENSE_TWIN = {"MixtralForCausalLM": "MistralForCausalLM", "Qwen3MoeForCausalLM": "Qwen3ForCausalLM"}


def dense_twin(shape):
    """The feed-forward networks are as wide as the experts of one token together."""
    dense = {key: value for key, value in shape.items() if key not in EXPERT_KEYS}
    inner = shape.get("moe_intermediate_size", shape["intermediate_size"])
    return dict(dense, intermediate_size=inner * shape["num_experts_per_tok"], architecture=DENSE_TWIN[shape["architecture"]])


SHAPES.update({f"{name}-active": dense_twin(shape) for name, shape in list(SHAPES.items()) if "architecture" in shape})
NUM_SPECIAL = 256  # ids at the end of the vocabulary, as Llama 3 has them
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_of_turn|>", "<|end_of_turn|>"]
WEIGHT_STD = 0.02
CHUNK_VALUES = 1 << 23  # random numbers made at a time

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_of_turn|>{{ message['role'] }}\n\n{{ message['content'] | trim }}"
    "<|end_of_turn|>{% endfor %}{% if add_generation_prompt %}<|start_of_turn|>assistant\n\n{% endif %}")


def feed_forward(shape):
    """(name, shape) of a layer's, as the architecture's checkpoints on the hub have them."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    if shape["architecture"] == "MixtralForCausalLM":
        yield "block_sparse_moe.gate.weight", (shape["num_local_experts"], hidden)
        for expert in range(shape["num_local_experts"]):
            for name, dims in (("w1", (inner, hidden)), ("w2", (hidden, inner)), ("w3", (inner, hidden))):
                yield f"block_sparse_moe.experts.{expert}.{name}.weight", dims
        return
    prefixes = ["mlp."]
    if "num_experts" in shape:
        yield "mlp.gate.weight", (shape["num_experts"], hidden)
        prefixes = [f"mlp.experts.{expert}." for expert in range(shape["num_experts"])]
        inner = shape["moe_intermediate_size"]
    for prefix in prefixes:
        yield prefix + "gate_proj.weight", (inner, hidden)
        yield prefix + "up_proj.weight", (inner, hidden)
        yield prefix + "down_proj.weight", (hidden, inner)


def tensors(shape):
    """(name, shape) of every tensor, in file order."""
    hidden = shape["hidden_size"]
    q = shape["num_attention_heads"] * shape["head_dim"]
    kv = shape["num_key_value_heads"] * shape["head_dim"]
    yield "model.embed_tokens.weight", (shape["vocab_size"], hidden)
    for layer in range(shape["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "self_attn.q_proj.weight", (q, hidden)
        yield prefix + "self_attn.k_proj.weight", (kv, hidden)
        yield prefix + "self_attn.v_proj.weight", (kv, hidden)
        yield prefix + "self_attn.o_proj.weight", (hidden, q)
        if shape["architecture"].startswith("Qwen3"):
            yield prefix + "self_attn.q_norm.weight", (shape["head_dim"],)
            yield prefix + "self_attn.k_norm.weight", (shape["head_dim"],)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        for name, dims in feed_forward(shape):
            yield prefix + name, dims
    yield "model.norm.weight", (hidden,)
    if not shape["tie_word_embeddings"]:
        yield "lm_head.weight", (shape["vocab_size"], hidden)


def to_bfloat16(values):
    """Round to nearest even; finite values only."""
    bits = values.view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_weights(path, shape, seed):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, dims in tensors(shape):
        size = 2 * int(numpy.prod(dims))
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    random = numpy.random.Generator(numpy.random.PCG64(seed))
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, dims in tensors(shape):
            left = int(numpy.prod(dims))
            while left > 0:
                count = min(left, CHUNK_VALUES)
                if len(dims) == 1:
                    values = numpy.ones(count, numpy.float32)
                else:
                    values = random.standard_normal(count, numpy.float32) * numpy.float32(WEIGHT_STD)
                file.write(to_bfloat16(values).tobytes())
                left -= count
            if sys.stderr.isatty():
                print(f"\r{file.tell() / 1e6:.0f} of {offset / 1e6:.0f} MB", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)


def byte_alphabet():
    """The printable character that stands for each byte in a byte-level BPE's vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    rest = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(rest)) for byte in range(256)]


def words():
    """Two letters, three, four ..., frequent letters first, each length also behind a blank one letter shorter."""
    letters = "etaoinshrdlcumwfgypbvkjxqz"
    for length in itertools.count(2):
        for prefix, count in (("\u0120", length - 1), ("", length)):
            for word in itertools.product(letters, repeat=count):
                yield prefix + "".join(word)


def tokenizer(vocab_size):
    tokens = byte_alphabet()
    merges = []
    for word in words():
        if len(tokens) == vocab_size - NUM_SPECIAL:
            break
        tokens.append(word)
        merges.append(f"{word[:-1]} {word[-1]}")
    special = SPECIAL + [f"<|reserved_{i}|>" for i in range(NUM_SPECIAL - len(SPECIAL))]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": len(tokens) + i, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for i, content in enumerate(special)],
        "normalizer": None, "pre_tokenizer": byte_level, "post_processor": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges},
    }


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-3.2-1b")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="directory to make")
    parser.add_argument("--layers", type=int, help="only so many of the shape's layers")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    shape = {"architecture": "LlamaForCausalLM", "rms_norm_eps": 1e-5, **SHAPES[arguments.shape]}
    if arguments.layers is not None:
        if not 1 <= arguments.layers <= shape["num_hidden_layers"]:
            parser.error(f"--layers is {arguments.layers}, want 1 to {shape['num_hidden_layers']}")
        shape["num_hidden_layers"] = arguments.layers
    try:
        arguments.output.mkdir(parents=True)
    except FileExistsError:
        parser.error(f"--output {arguments.output}: exists already")
    first_special = shape["vocab_size"] - NUM_SPECIAL
    config = {key: value for key, value in shape.items() if key != "architecture"}
    write_json(arguments.output / "config.json", dict(
        architectures=[shape["architecture"]], model_type=MODEL_TYPES[shape["architecture"]], hidden_act="silu",
        torch_dtype="bfloat16", attention_bias=False, mlp_bias=False, bos_token_id=first_special,
        eos_token_id=[first_special + 1, first_special + 3], **config))
    write_json(arguments.output / "tokenizer.json", tokenizer(shape["vocab_size"]))
    write_json(arguments.output / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[0], "eos_token": SPECIAL[1],
        "model_max_length": shape["max_position_embeddings"], "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE})
    write_weights(arguments.output / "model.safetensors", shape, arguments.seed)


if __name__ == "__main__":
    main()
