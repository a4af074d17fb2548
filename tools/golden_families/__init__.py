"""Families of tiny models for make_goldens.py: one file each, which names the classes of transformers, the tensors that
a checkpoint must have, and the fixtures. Adding a family is one file and one line in MODULES."""

from dataclasses import dataclass, field
from importlib import import_module
from typing import Callable

import torch

MODULES = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "granitemoe", "granitemoeshared", "phimoe",
           "deepseek_v2", "deepseek_v3", "gpt_oss")


@dataclass(frozen=True)
class Fixture:
    """One model. `config` goes to the family's config class; the gains scale the random weights (see fill_weights)."""

    name: str
    seed: int
    dtype: torch.dtype
    config: dict
    prompts: tuple = (1, 7, 33, 317)
    n_shards: int = 1
    classic_config: bool = False  # write config.json as checkpoints of 2023 have it: rope_theta, torch_dtype
    gains: dict = field(default_factory=dict)
    rope: dict = field(default_factory=dict)  # a scaling: rope_type and what belongs to it
    max_positions: int = 1024
    n_served: int | None = None  # positions that the test serves, where the RoPE depends on them; None: all
    n_distinct_min: int = 12  # a continuation that circles through fewer tokens tests little
    is_rope_fixed: bool = False  # the frequencies for n_served hold at every length, as pikv has it


@dataclass(frozen=True)
class Family:
    config: type
    model: type
    names: Callable  # fixture -> set of tensor names
    fixtures: list
    classic: Callable | None = None  # config.json's values, storage type -> those of 2023
    router_margin: Callable | None = None  # router logits, fixture -> distance to another decision


def base_names(fixture):
    """What all checkpoints have: tables, norms and attention, with the biases that the config wants."""
    config = fixture.config
    names = {"model.embed_tokens.weight", "model.norm.weight"}
    if not config.get("tie_word_embeddings", False):
        names.add("lm_head.weight")
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        names |= {f"{prefix}{norm}_layernorm.weight" for norm in ("input", "post_attention")}
        names |= {f"{prefix}self_attn.{x}_proj.weight" for x in "qkvo"}
        if config.get("attention_bias", False):
            names |= {f"{prefix}self_attn.{x}_proj.bias" for x in "qkvo"}
    return names


def expert_names(prefix, n_experts, three):
    """The three matrices of every expert below `prefix`."""
    return {f"{prefix}.{expert}.{x}.weight" for expert in range(n_experts) for x in three}


def families():
    """Name of the family -> Family, in the order of MODULES."""
    return {name: import_module(f"golden_families.{name}").FAMILY for name in MODULES}
