#!/usr/bin/env python3
"""A checkpoint of a large shape that takes no disk: sparse shards of zeros, to measure how long loading takes.

    bench/sparse_checkpoint.py bench/shapes/olmoe-1b-7b --shards 3 --out /tmp/olmoe
    build/release/pikv serve /tmp/olmoe --check

config.json is that of a family in FAMILIES below; tensors have its names and the type that torch_dtype says. The
tokenizer is that of models/storyteller. A second start finds the pages of the files in memory, as a restart of a server does.
"""

import argparse
import json
import pathlib
import shutil
import struct

ROOT = pathlib.Path(__file__).resolve().parents[1]
TYPES = {"bfloat16": ("BF16", 2), "float16": ("F16", 2), "float32": ("F32", 4)}


# What names of a family's tensors are made of: its block of experts, gate, up and down of an expert, how wide q's and k's
# norms are (None: it has none), the key of an expert's width and that of their number.
FAMILIES = {
    "mixtral": ("block_sparse_moe", ("w1", "w3", "w2"), None, "intermediate_size", "num_local_experts"),
    "olmoe": ("mlp", ("gate_proj", "up_proj", "down_proj"), "projection", "intermediate_size", "num_experts"),
    "qwen3_moe": ("mlp", ("gate_proj", "up_proj", "down_proj"), "head", "moe_intermediate_size", "num_experts"),
}


def tensors_of(c):
    """Names and shapes, in the order in which checkpoints have them."""
    block, (gate, up, down), norm, wide, n_experts = FAMILIES[c["model_type"]]
    d, wide, n_experts = c["hidden_size"], c[wide], c[n_experts]
    head_dim = c.get("head_dim") or d // c["num_attention_heads"]
    q, kv = c["num_attention_heads"] * head_dim, c["num_key_value_heads"] * head_dim
    yield "model.embed_tokens.weight", [c["vocab_size"], d]
    for layer in range(c["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", [d]
        yield prefix + "post_attention_layernorm.weight", [d]
        for name, shape in (("q", [q, d]), ("k", [kv, d]), ("v", [kv, d]), ("o", [d, q])):
            yield f"{prefix}self_attn.{name}_proj.weight", shape
        for name, size in (("q", q), ("k", kv)) if norm is not None else ():
            yield f"{prefix}self_attn.{name}_norm.weight", [size if norm == "projection" else head_dim]
        yield f"{prefix}{block}.gate.weight", [n_experts, d]
        for expert in range(n_experts):
            for name, shape in ((gate, [wide, d]), (up, [wide, d]), (down, [d, wide])):
                yield f"{prefix}{block}.experts.{expert}.{name}.weight", shape
    yield "model.norm.weight", [d]
    yield "lm_head.weight", [c["vocab_size"], d]


def write_shard(path, tensors, type_name, value_bytes):
    header, at = {}, 0
    for name, shape in tensors:
        size = value_bytes
        for n in shape:
            size *= n
        header[name] = {"dtype": type_name, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return at


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", type=pathlib.Path)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    config = json.loads((args.shape / "config.json").read_text())
    type_name, value_bytes = TYPES[config["torch_dtype"]]
    tensors = list(tensors_of(config))
    args.out.mkdir(parents=True)
    (args.out / "config.json").write_text(json.dumps(config, indent=2))
    for name in ("tokenizer.model", "tokenizer_config.json"):
        if (ROOT / "models/storyteller" / name).exists():
            shutil.copy(ROOT / "models/storyteller" / name, args.out)
    weight_map, total = {}, 0
    for i in range(args.shards):
        name = f"model-{i + 1:05}-of-{args.shards:05}.safetensors"
        part = tensors[len(tensors) * i // args.shards : len(tensors) * (i + 1) // args.shards]
        total += write_shard(args.out / name, part, type_name, value_bytes)
        weight_map.update({tensor: name for tensor, _ in part})
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (args.out / "model.safetensors.index.json").write_text(json.dumps(index))
    print(f"{total} bytes in {len(tensors)} tensors and {args.shards} shards")


if __name__ == "__main__":
    main()
