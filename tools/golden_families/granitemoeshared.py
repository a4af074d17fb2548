"""Granite-MoE with a shared expert, and without one."""

import torch
from transformers import GraniteMoeSharedConfig, GraniteMoeSharedForCausalLM

from golden_families import Family, Fixture, granitemoe

FIXTURES = [
    Fixture(name="base-f16", seed=5, n_distinct_min=6, dtype=torch.float16, prompts=(1, 7, 33, 120),
            config=granitemoe.SMALL | dict(shared_intermediate_size=24)),
    Fixture(name="none-bf16", seed=7, n_distinct_min=6, dtype=torch.bfloat16, prompts=(1, 33, 120),
            config=granitemoe.SMALL | dict(shared_intermediate_size=0)),
    Fixture(name="odd-f32", seed=32, n_distinct_min=6, dtype=torch.float32, prompts=(1, 5, 33, 120),
            config=granitemoe.SMALL | dict(vocab_size=101, hidden_size=30, intermediate_size=14, num_attention_heads=3,
                                           num_key_value_heads=3, shared_intermediate_size=10, num_local_experts=5)),
]


def names(fixture):
    found = granitemoe.names(fixture)
    for layer in range(fixture.config["num_hidden_layers"]):
        if fixture.config["shared_intermediate_size"] > 0:
            found |= {f"model.layers.{layer}.shared_mlp.{x}_linear.weight" for x in ("input", "output")}
    return found


FAMILY = Family(GraniteMoeSharedConfig, GraniteMoeSharedForCausalLM, names, FIXTURES)
