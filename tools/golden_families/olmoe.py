"""OLMoE: norms over whole projections, clipping, probabilities that are not renormalised."""

import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

from golden_families import Family, Fixture, base_names, expert_names

SMALL = dict(vocab_size=96, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=4, num_experts=6, num_experts_per_tok=3, rms_norm_eps=1e-5, rope_theta=10000.0,
             pad_token_id=None, eos_token_id=None)

FIXTURES = [
    Fixture(name="base-bf16", seed=1, n_distinct_min=6, dtype=torch.bfloat16, prompts=(1, 7, 33, 120), config=SMALL),
    Fixture(
        name="clip-f32",  # a limit that most of q and k reach, biases, grouped heads, linear positions
        seed=8,
        n_distinct_min=6,
        dtype=torch.float32,
        prompts=(1, 7, 33, 120),
        config=SMALL | dict(num_experts=4, num_experts_per_tok=2, num_key_value_heads=2, clip_qkv=0.6,
                            attention_bias=True, norm_topk_prob=True),
        rope=dict(rope_type="linear", factor=4.0),
    ),
    Fixture(
        name="tied-f16",  # tied head; yarn with its own scale
        seed=4,
        n_distinct_min=6,
        dtype=torch.float16,
        prompts=(1, 7, 33, 120),
        config=SMALL | dict(tie_word_embeddings=True, clip_qkv=2.0),
        rope=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
        max_positions=256,
        gains=dict(embed=0.4, o_proj=2.0, down_proj=4.0),
    ),
]


def names(fixture):
    found = base_names(fixture)
    for layer in range(fixture.config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        found |= {f"{prefix}self_attn.{x}_norm.weight" for x in "qk"}
        found.add(f"{prefix}mlp.gate.weight")
        found |= expert_names(f"{prefix}mlp.experts", fixture.config["num_experts"],
                              ("gate_proj", "up_proj", "down_proj"))
    return found


FAMILY = Family(OlmoeConfig, OlmoeForCausalLM, names, FIXTURES)
