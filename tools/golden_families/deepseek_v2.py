"""DeepSeek-V2: latent attention, experts chosen by softmax, of some groups or of all, shared experts."""

import torch
from transformers import DeepseekV2Config
from transformers import DeepseekV2ForCausalLM as Published
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2MLP

from golden_families import Family, Fixture
from golden_families.deepseek_v3 import group_gap, latent_names

SMALL = dict(vocab_size=96, hidden_size=32, intermediate_size=40, moe_intermediate_size=16, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=4, n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=2,
             first_k_dense_replace=1, topk_method="greedy", n_group=None, topk_group=None, routed_scaling_factor=1.0,
             q_lora_rank=None, kv_lora_rank=24, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=12,
             rms_norm_eps=1e-6, rope_theta=10000.0)

FIXTURES = [
    Fixture(
        name="lite-bf16",  # as V2-Lite: queries at once, no groups, YaRN in the old spelling
        seed=1,
        n_distinct_min=6,
        dtype=torch.bfloat16,
        prompts=(1, 7, 33, 90),
        classic_config=True,
        config=SMALL,
        rope=dict(rope_type="yarn", factor=4.0, mscale=0.707, mscale_all_dim=0.707, beta_fast=32, beta_slow=1,
                  original_max_position_embeddings=128),
        max_positions=512,
    ),
    Fixture(
        name="groups-f32",  # as V2: queries through a low rank, the best groups, scaled weights
        seed=36,
        n_distinct_min=6,
        dtype=torch.float32,
        prompts=(1, 7, 70),
        config=SMALL | dict(vocab_size=80, hidden_size=24, intermediate_size=32, moe_intermediate_size=12,
                            q_lora_rank=20, topk_method="group_limited_greedy", n_group=4, topk_group=2,
                            routed_scaling_factor=4.0, num_hidden_layers=3, first_k_dense_replace=2),
    ),
    Fixture(
        name="odd-f16",
        seed=49,
        n_distinct_min=6,
        dtype=torch.float16,
        prompts=(2, 5, 70),
        config=SMALL | dict(hidden_size=30, num_attention_heads=3, num_key_value_heads=3, kv_lora_rank=22,
                            qk_nope_head_dim=6, qk_rope_head_dim=6, v_head_dim=9, n_shared_experts=1,
                            topk_method="group_limited_greedy", n_group=3, topk_group=1, n_routed_experts=9,
                            num_experts_per_tok=2, first_k_dense_replace=0, tie_word_embeddings=True),
        gains=dict(embed=0.4, o_proj=2.0, down_proj=4.0),
    ),
    Fixture(
        name="freq-bf16",  # every other layer has experts, but not the first, which first_k_dense_replace takes
        seed=5,
        n_distinct_min=6,
        dtype=torch.bfloat16,
        prompts=(1, 7, 33),
        config=SMALL | dict(num_hidden_layers=4, moe_layer_freq=2, n_routed_experts=6, num_experts_per_tok=2),
    ),
]


class DeepseekV2ForCausalLM(Published):
    """With moe_layer_freq, which the published code reads and transformers does not: other layers are dense."""

    def __init__(self, config):
        super().__init__(config)
        for i, layer in enumerate(self.model.layers):
            if i % getattr(config, "moe_layer_freq", 1) != 0:
                layer.mlp = DeepseekV2MLP(config)


def names(fixture):
    return latent_names(fixture, False)


def router_margin(logits, fixture):
    """In logits: a softmax keeps their order."""
    return group_gap(logits, fixture.config, 1)


FAMILY = Family(DeepseekV2Config, DeepseekV2ForCausalLM, names, FIXTURES, router_margin=router_margin)
