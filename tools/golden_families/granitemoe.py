"""Granite-MoE: multipliers, and all experts of a layer in two tensors."""

import torch
from transformers import GraniteMoeConfig, GraniteMoeForCausalLM

from golden_families import Family, Fixture, base_names

SMALL = dict(vocab_size=96, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, num_local_experts=6, num_experts_per_tok=3, rms_norm_eps=1e-6, rope_theta=10000.0,
             embedding_multiplier=3.0, residual_multiplier=0.6, attention_multiplier=0.25, logits_scaling=2.0)

FIXTURES = [
    Fixture(name="base-bf16", seed=7, n_distinct_min=6, dtype=torch.bfloat16, prompts=(1, 33, 120), config=SMALL),
    Fixture(
        name="tied-f16",
        seed=8,
        n_distinct_min=6,
        dtype=torch.float16,
        prompts=(1, 33, 120),
        config=SMALL | dict(tie_word_embeddings=True, embedding_multiplier=6.0, logits_scaling=0.5),
        rope=dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=64),
        classic_config=True,
        gains=dict(embed=0.07, o_proj=2.0, down_proj=4.0),
    ),
    Fixture(
        name="plain-f32",  # multipliers of one, and scores that are not divided
        seed=1,
        n_distinct_min=6,
        dtype=torch.float32,
        prompts=(1, 33, 120),
        config=SMALL | dict(embedding_multiplier=1.0, residual_multiplier=1.0, attention_multiplier=1.0,
                            logits_scaling=1.0, num_local_experts=4, num_experts_per_tok=1),
        gains=dict(q_proj=0.6, k_proj=0.6),
    ),
]


def names(fixture):
    found = base_names(fixture)
    for layer in range(fixture.config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}.block_sparse_moe."
        found |= {f"{prefix}{x}.weight" for x in ("router.layer", "input_linear", "output_linear")}
    return found


FAMILY = Family(GraniteMoeConfig, GraniteMoeForCausalLM, names, FIXTURES)
