"""DeepSeek-V3: latent attention, groups of experts chosen by sigmoid and bias, a shared expert, dense first layers."""

import torch
from transformers import DeepseekV3Config
from transformers import DeepseekV3ForCausalLM as Published

from golden_families import Family, Fixture, expert_names

THREE = ("gate_proj", "up_proj", "down_proj")

SMALL = dict(vocab_size=96, hidden_size=32, intermediate_size=40, moe_intermediate_size=16, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=4, n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=1,
             first_k_dense_replace=1, n_group=4, topk_group=2, norm_topk_prob=True, routed_scaling_factor=2.5,
             q_lora_rank=24, kv_lora_rank=24, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10,
             rms_norm_eps=1e-5, rope_theta=10000.0)

FIXTURES = [
    Fixture(
        name="base-bf16",  # as released: YaRN in the old spelling, with mscale in the scale of scores
        seed=13,
        n_distinct_min=6,
        dtype=torch.bfloat16,
        prompts=(1, 7, 33, 90),
        classic_config=True,
        config=SMALL,
        rope=dict(rope_type="yarn", factor=8.0, mscale=1.0, mscale_all_dim=0.7, beta_fast=32, beta_slow=1,
                  original_max_position_embeddings=64),
        max_positions=512,
    ),
    Fixture(
        name="whole-f32",  # queries at once, one group, weights as they are, two shared experts, no dense layer
        seed=9,
        n_distinct_min=6,
        dtype=torch.float32,
        prompts=(1, 7, 33, 90),
        config=SMALL | dict(q_lora_rank=None, n_group=1, topk_group=1, norm_topk_prob=False, n_shared_experts=2,
                            first_k_dense_replace=0, routed_scaling_factor=1.0, num_experts_per_tok=2,
                            tie_word_embeddings=True),
        gains=dict(embed=0.4, o_proj=2.0, down_proj=4.0),
    ),
    Fixture(
        name="odd-f16",  # sizes that are no multiple of eight, half-split pairs, values wider than keys
        seed=49,
        n_distinct_min=6,
        dtype=torch.float16,
        prompts=(1, 5, 70),
        config=SMALL | dict(hidden_size=30, num_attention_heads=3, num_key_value_heads=3, q_lora_rank=17,
                            kv_lora_rank=19, qk_nope_head_dim=5, qk_rope_head_dim=6, v_head_dim=21, n_group=2,
                            topk_group=1, n_routed_experts=6, num_experts_per_tok=2, rope_interleave=False),
    ),
]


def choice_bias(layer, n_experts):
    """What moves choices and no weights: sixty-fourths, which every storage type holds."""
    generator = torch.Generator().manual_seed(1000 + layer)
    return torch.randint(-16, 17, (n_experts,), generator=generator) / 64


class DeepseekV3ForCausalLM(Published):
    """With biases of the choice, which are buffers and start as zeros."""

    def __init__(self, config):
        super().__init__(config)
        for i, layer in enumerate(self.model.layers):
            if i >= config.first_k_dense_replace:
                layer.mlp.gate.e_score_correction_bias.copy_(choice_bias(i, config.n_routed_experts))


def latent_names(fixture, has_bias):
    config = fixture.config
    found = {"model.embed_tokens.weight", "model.norm.weight"}
    if not config.get("tie_word_embeddings", False):
        found.add("lm_head.weight")
    queries = ("q_proj",) if config["q_lora_rank"] is None else ("q_a_proj", "q_a_layernorm", "q_b_proj")
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        found |= {f"{prefix}{norm}_layernorm.weight" for norm in ("input", "post_attention")}
        found |= {f"{prefix}self_attn.{x}.weight"
                  for x in queries + ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj")}
        if layer < config["first_k_dense_replace"] or layer % config.get("moe_layer_freq", 1) != 0:
            found |= {f"{prefix}mlp.{x}.weight" for x in THREE}
            continue
        found |= {f"{prefix}mlp.gate.weight"} | {f"{prefix}mlp.shared_experts.{x}.weight" for x in THREE}
        if has_bias:
            found.add(f"{prefix}mlp.gate.e_score_correction_bias")
        found |= expert_names(f"{prefix}mlp.experts", config["n_routed_experts"], THREE)
    return found


def names(fixture):
    return latent_names(fixture, True)


def gap(values, k):
    """Smallest distance between the k-th and the next largest along the last axis."""
    if k >= values.shape[-1]:
        return float("inf")
    top = values.topk(k + 1, dim=-1).values
    return float((top[..., k - 1] - top[..., k]).min())


def group_gap(choice, config, n_best):
    """How near another choice of groups, or of experts within those chosen, comes."""
    n_groups, n_top = config["n_group"] or 1, config["topk_group"] or 1
    grouped = choice.unflatten(-1, (n_groups, -1))
    worth = grouped.topk(min(n_best, grouped.shape[-1]), dim=-1).values.sum(-1)
    chosen = torch.zeros_like(worth).scatter_(-1, worth.topk(n_top, dim=-1).indices, 1)
    left = choice.masked_fill(chosen.repeat_interleave(grouped.shape[-1], -1) == 0, float("-inf"))
    return min(gap(worth, n_top), gap(left, config["num_experts_per_tok"]))


def router_margin(logits, fixture):
    """In logits, of which a sigmoid makes a quarter at most."""
    config = fixture.config
    first, least = config["first_k_dense_replace"], float("inf")
    for i, scores in enumerate(logits.sigmoid()):
        biased = scores + choice_bias(first + i, config["n_routed_experts"])
        least = min(least, 4 * group_gap(biased, config, 2))
    return least


FAMILY = Family(DeepseekV3Config, DeepseekV3ForCausalLM, names, FIXTURES, router_margin=router_margin)
