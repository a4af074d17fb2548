"""Phi-3.5-MoE: layer norms, biases everywhere, sparsemixer, longrope."""

import torch
from transformers import PhimoeConfig, PhimoeForCausalLM

from golden_families import Family, Fixture, base_names, expert_names

SMALL = dict(vocab_size=96, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, num_local_experts=5, num_experts_per_tok=2, rms_norm_eps=1e-5, rope_theta=10000.0,
             attention_bias=True, lm_head_bias=True, router_jitter_noise=0.3)


def longrope(original):
    return dict(rope_type="longrope", short_factor=[1.0, 1.1, 1.3, 1.5], long_factor=[1.5, 3.0, 6.0, 9.0],
                short_mscale=1.2, long_mscale=1.25, original_max_position_embeddings=original, factor=4.0)


FIXTURES = [
    Fixture(name="base-bf16", seed=3, n_distinct_min=6, dtype=torch.bfloat16, prompts=(1, 33, 120), config=SMALL),
    Fixture(
        name="short-f16",  # no more positions than the original ones: the short factors, as transformers has them
        seed=16,
        n_distinct_min=6,
        dtype=torch.float16,
        prompts=(24, 25, 120),
        classic_config=True,
        config=SMALL | dict(sliding_window=24, router_jitter_noise=0.01),
        rope=longrope(256),
        n_served=256,
    ),
    Fixture(
        name="long-f32",  # more: the long factors and their scale at every length
        seed=15,
        n_distinct_min=6,
        dtype=torch.float32,
        prompts=(1, 33, 120),
        config=SMALL | dict(lm_head_bias=False, num_local_experts=4),
        rope=longrope(64),
        max_positions=256,
        n_served=256,
        is_rope_fixed=True,
    ),
]


def names(fixture):
    found = base_names(fixture) | {"model.norm.bias"}
    if fixture.config["lm_head_bias"]:
        found.add("lm_head.bias")
    for layer in range(fixture.config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        found |= {f"{prefix}{norm}_layernorm.bias" for norm in ("input", "post_attention")}
        found.add(f"{prefix}block_sparse_moe.gate.weight")
        found |= expert_names(f"{prefix}block_sparse_moe.experts", fixture.config["num_local_experts"],
                              ("w1", "w2", "w3"))
    return found


def router_margin(logits, fixture):
    """The order of the first three, and how near any rival comes to the limit of its choice."""
    top = logits.topk(3, dim=-1).values
    order = float((top[..., :2] - top[..., 1:]).min())
    for choice in range(2):
        best = top[..., choice : choice + 1]
        apart = (best - logits) / logits.abs().clamp(min=best)
        order = min(order, float((apart - 2 * fixture.config["router_jitter_noise"]).abs().min()))
    return order


FAMILY = Family(PhimoeConfig, PhimoeForCausalLM, names, FIXTURES, router_margin=router_margin)
