"""gpt-oss: a sink for each head, windows in every other layer, experts with biases and a clamped SwiGLU."""

import torch
from transformers import GptOssConfig, GptOssForCausalLM

from golden_families import Family, Fixture, base_names

SMALL = dict(vocab_size=96, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=8, num_local_experts=6, num_experts_per_tok=3, sliding_window=24,
             attention_bias=True, rms_norm_eps=1e-5, rope_theta=10000.0)
EXACT_YARN = dict(rope_type="yarn", factor=8.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
                  original_max_position_embeddings=64)
SINKS = dict(sinks=2.0)  # of size one: about as much as a key

FIXTURES = [
    Fixture(
        name="base-bf16",  # as released: YaRN whose range of channels is not rounded
        seed=5,
        n_distinct_min=6,
        dtype=torch.bfloat16,
        prompts=(1, 24, 25, 120),
        config=SMALL,
        rope=EXACT_YARN,
        max_positions=512,
        gains=SINKS,
    ),
    Fixture(
        name="clamped-f32",  # a limit that many values reach; one key head; a window in the second layer alone
        seed=1,
        n_distinct_min=6,
        dtype=torch.float32,
        prompts=(1, 7, 90),
        config=SMALL | dict(num_key_value_heads=1, swiglu_limit=0.75, swiglu_alpha=1.25, num_hidden_layers=3,
                            layer_types=["full_attention", "sliding_attention", "full_attention"]),
        gains=SINKS,
    ),
    Fixture(
        name="odd-f16",  # odd sizes, no biases of attention, old spelling
        seed=6,
        n_distinct_min=6,
        dtype=torch.float16,
        prompts=(2, 5, 90),
        config=SMALL | dict(hidden_size=30, intermediate_size=13, num_attention_heads=3, num_key_value_heads=3,
                            head_dim=6, num_local_experts=5, num_experts_per_tok=2, sliding_window=5,
                            attention_bias=False),
        rope=EXACT_YARN,
        max_positions=512,
        classic_config=True,
        gains=SINKS,
    ),
]


def names(fixture):
    found = base_names(fixture)
    for layer in range(fixture.config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        found |= {f"{prefix}self_attn.sinks", f"{prefix}mlp.router.weight", f"{prefix}mlp.router.bias"}
        found |= {f"{prefix}mlp.experts.{x}_proj{end}" for x in ("gate_up", "down") for end in ("", "_bias")}
    return found


FAMILY = Family(GptOssConfig, GptOssForCausalLM, names, FIXTURES)
