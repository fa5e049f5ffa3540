#!/usr/bin/env python3
# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0
"""Writes a checkpoint of make_random_checkpoint.py as a GGUF file in float16, for peers that read that format.

    python3 bench/make_gguf.py CHECKPOINT model-f16.gguf
    llama-quantize model-f16.gguf model-q4_0.gguf Q4_0     # llama.cpp's own tool; keeps a tied table in Q6_K

Needs numpy and gguf (PyPI). Llama architecture, one safetensors file, bfloat16.
"""
import argparse
import json
import math
import pathlib
import struct

import gguf
import numpy


class Checkpoint:
    """Tensors of one safetensors file, read when asked for."""

    def __init__(self, path):
        with open(path, "rb") as file:
            size, = struct.unpack("<Q", file.read(8))
            self.header = json.loads(file.read(size))
        self.data = numpy.memmap(path, numpy.uint8, mode="r", offset=8 + size)
        self.header.pop("__metadata__", None)

    def shape(self, name):
        return self.header[name]["shape"]

    def load(self, name):
        begin, end = self.header[name]["data_offsets"]
        bits = self.data[begin:end].view("<u2").astype(numpy.uint32) << 16
        return bits.view(numpy.float32).reshape(self.shape(name))


def names(num_layers, tied):
    """(GGUF name, safetensors name) of every tensor."""
    yield "token_embd.weight", "model.embed_tokens.weight"
    for i in range(num_layers):
        for ours, theirs in (("attn_norm", "input_layernorm"), ("attn_q", "self_attn.q_proj"), ("attn_k", "self_attn.k_proj"),
                             ("attn_v", "self_attn.v_proj"), ("attn_output", "self_attn.o_proj"),
                             ("ffn_norm", "post_attention_layernorm"), ("ffn_gate", "mlp.gate_proj"),
                             ("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj")):
            yield f"blk.{i}.{ours}.weight", f"model.layers.{i}.{theirs}.weight"
    yield "output_norm.weight", "model.norm.weight"
    if not tied:
        yield "output.weight", "lm_head.weight"


def interleaved(weight, num_heads):
    """Rows of the rotated halves in pairs, as GGUF has them."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, 2, rows // num_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def rope_factors(config):
    """What each frequency is divided by (Llama 3's scaling), or None."""
    scaling = config.get("rope_scaling")
    if not scaling:
        return None
    head_dim, factor = config["head_dim"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    original = scaling["original_max_position_embeddings"]
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * config["rope_theta"] ** (i / head_dim)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return numpy.array(factors, numpy.float32)


def add_metadata(writer, config, tokenizer):
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    tokens = list(tokenizer["model"]["vocab"]) + [special[i] for i in sorted(special)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(len(tokens))])
    writer.add_token_merges(tokenizer["model"]["merges"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"][0])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    arguments = parser.parse_args()
    config = json.loads((arguments.checkpoint / "config.json").read_text())
    tokenizer = json.loads((arguments.checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    checkpoint = Checkpoint(arguments.checkpoint / "model.safetensors")
    writer = gguf.GGUFWriter(arguments.output, "llama")
    add_metadata(writer, config, tokenizer)
    tensors = list(names(config["num_hidden_layers"], config["tie_word_embeddings"]))
    factors = rope_factors(config)
    for name, source in tensors:
        shape = checkpoint.shape(source)
        dtype = numpy.dtype(numpy.float32 if len(shape) == 1 else numpy.float16)
        writer.add_tensor_info(name, shape, dtype, math.prod(shape) * dtype.itemsize)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, source in tensors:
        values = checkpoint.load(source)
        if "attn_q." in name:
            values = interleaved(values, config["num_attention_heads"])
        if "attn_k." in name:
            values = interleaved(values, config["num_key_value_heads"])
        if values.ndim > 1:
            values = values.astype(numpy.float16)
        writer.write_tensor_data(numpy.ascontiguousarray(values))
    if factors is not None:
        writer.write_tensor_data(factors)
    writer.close()


if __name__ == "__main__":
    main()
