"""Qwen3-MoE: norms of each head, a head_dim of its own, dense layers, a window of all layers."""

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from golden_families import Family, Fixture, base_names, expert_names

THREE = ("gate_proj", "up_proj", "down_proj")

SMALL = dict(vocab_size=96, hidden_size=32, intermediate_size=40, moe_intermediate_size=16, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=8, num_experts_per_tok=3,
             norm_topk_prob=True, rms_norm_eps=1e-6, rope_theta=1000000.0)

FIXTURES = [
    Fixture(
        name="base-bf16",  # with yarn in the old spelling, as the model's card says to add it
        seed=2,
        n_distinct_min=6,
        dtype=torch.bfloat16,
        prompts=(1, 7, 33, 120),
        classic_config=True,
        config=SMALL,
        rope=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=128),
        max_positions=128,
    ),
    Fixture(
        name="dense-f32",  # every other layer is dense; biases; probabilities as they are
        seed=13,
        n_distinct_min=6,
        dtype=torch.float32,
        prompts=(1, 7, 33, 120),
        config=SMALL | dict(decoder_sparse_step=2, attention_bias=True, norm_topk_prob=False, num_experts=4),
    ),
    Fixture(
        name="window-f16",
        seed=2,
        n_distinct_min=6,
        dtype=torch.float16,
        prompts=(24, 25, 120),
        config=SMALL | dict(use_sliding_window=True, sliding_window=24, head_dim=24),
        rope=dict(rope_type="linear", factor=2.0),
    ),
]


def names(fixture):
    config = fixture.config
    found = base_names(fixture)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        found |= {f"{prefix}self_attn.{x}_norm.weight" for x in "qk"}
        if (layer + 1) % config.get("decoder_sparse_step", 1) != 0:
            found |= {f"{prefix}mlp.{x}.weight" for x in THREE}
            continue
        found.add(f"{prefix}mlp.gate.weight")
        found |= expert_names(f"{prefix}mlp.experts", config["num_experts"], THREE)
    return found


FAMILY = Family(Qwen3MoeConfig, Qwen3MoeForCausalLM, names, FIXTURES)
