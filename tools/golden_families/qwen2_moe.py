"""Qwen2-MoE: a gated shared expert, biases, dense layers, windows of some layers."""

import torch
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from golden_families import Family, Fixture, base_names, expert_names

THREE = ("gate_proj", "up_proj", "down_proj")

SMALL = dict(vocab_size=96, hidden_size=32, intermediate_size=40, moe_intermediate_size=16,
             shared_expert_intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             num_experts=6, num_experts_per_tok=3, rms_norm_eps=1e-6, rope_theta=10000.0)

FIXTURES = [
    Fixture(name="base-bf16", seed=13, n_distinct_min=6, dtype=torch.bfloat16, prompts=(1, 7, 33, 120), config=SMALL),
    Fixture(
        name="dense-f32",  # the first layer is dense; dynamic positions as far as both agree
        seed=2,
        n_distinct_min=6,
        dtype=torch.float32,
        prompts=(1, 7, 33, 120),
        config=SMALL | dict(mlp_only_layers=[0], norm_topk_prob=True, num_experts=4, num_experts_per_tok=2),
        rope=dict(rope_type="dynamic", factor=4.0),
        max_positions=256,
        n_served=256,
    ),
    Fixture(
        name="dynamic-f16",  # dynamic positions behind the original ones: the base of the longest sequence
        seed=3,
        n_distinct_min=6,
        dtype=torch.float16,
        prompts=(1, 7, 33, 120),
        config=SMALL | dict(qkv_bias=False),
        rope=dict(rope_type="dynamic", factor=4.0),
        max_positions=64,
        n_served=256,
        is_rope_fixed=True,
    ),
    Fixture(
        name="window-bf16",  # every other layer has a window, the second alone has experts
        seed=2,
        n_distinct_min=6,
        dtype=torch.bfloat16,
        prompts=(24, 25, 120),
        config=SMALL | dict(num_hidden_layers=3, decoder_sparse_step=2, use_sliding_window=True, sliding_window=24),
        rope=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=128),
    ),
]


def names(fixture):
    config = fixture.config
    found = base_names(fixture)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        if config.get("qkv_bias", True):
            found |= {f"{prefix}self_attn.{x}_proj.bias" for x in "qkv"}
        if layer in config.get("mlp_only_layers", []) or (layer + 1) % config.get("decoder_sparse_step", 1) != 0:
            found |= {f"{prefix}mlp.{x}.weight" for x in THREE}
            continue
        found |= {f"{prefix}mlp.{x}.weight" for x in ("gate", "shared_expert_gate")}
        found |= {f"{prefix}mlp.shared_expert.{x}.weight" for x in THREE}
        found |= expert_names(f"{prefix}mlp.experts", config["num_experts"], THREE)
    return found


FAMILY = Family(Qwen2MoeConfig, Qwen2MoeForCausalLM, names, FIXTURES)
