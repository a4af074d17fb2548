"""Mixtral: as many kinds of storage, shape and window as the loader and the attention tell apart."""

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from golden_families import Family, Fixture, base_names, expert_names

FIXTURES = [
    Fixture(
        name="base-f32",  # plain: as many key/value heads as query heads, null window, head_dim from the division
        seed=14,
        dtype=torch.float32,
        config=dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=4, num_local_experts=4, num_experts_per_tok=2,
                    rms_norm_eps=1e-5, rope_theta=1000000.0),
    ),
    Fixture(
        name="gqa-bf16",  # four query heads to a key/value head, eight experts as in Mixtral 8x7B
        seed=8,
        dtype=torch.bfloat16,
        config=dict(vocab_size=128, hidden_size=64, intermediate_size=32, num_hidden_layers=2,
                    num_attention_heads=8, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2,
                    rms_norm_eps=1e-5, rope_theta=1000000.0),
    ),
    Fixture(
        name="window-f16",  # sliding window; head_dim is not hidden/heads; five experts, three at a time
        seed=5,
        dtype=torch.float16,
        prompts=(1, 24, 25, 33, 317),
        config=dict(vocab_size=144, hidden_size=48, intermediate_size=64, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_local_experts=5,
                    num_experts_per_tok=3, sliding_window=24, rms_norm_eps=1e-6, rope_theta=10000.0),
    ),
    Fixture(
        name="tied-bf16",  # lm_head is the embedding and absent from the file; one expert; an epsilon that matters
        seed=5,
        dtype=torch.bfloat16,
        config=dict(vocab_size=112, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                    num_attention_heads=8, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=1,
                    tie_word_embeddings=True, rms_norm_eps=1e-2, rope_theta=500000.0),
        gains=dict(embed=0.4, o_proj=2.0, down_proj=4.0),
    ),
    Fixture(
        name="sharded-f16",  # three shards and an index; config.json as released checkpoints have it
        seed=2,
        dtype=torch.float16,
        prompts=(1, 7, 33, 301),
        n_shards=3,
        classic_config=True,
        config=dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                    num_attention_heads=4, num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2,
                    rms_norm_eps=1e-5, rope_theta=50000.0),
    ),
    Fixture(
        name="odd-f32",  # sizes that are no multiple of eight, a window shorter than the short prompts
        seed=2,
        dtype=torch.float32,
        prompts=(1, 5, 6, 33, 130),
        config=dict(vocab_size=101, hidden_size=30, intermediate_size=42, num_hidden_layers=2,
                    num_attention_heads=3, num_key_value_heads=3, head_dim=14, num_local_experts=5,
                    num_experts_per_tok=2, sliding_window=5, rms_norm_eps=1e-3, rope_theta=100000.0),
    ),
]


def classic_config(config, dtype):
    """config.json with the keys and the order of the released Mixtral 8x7B."""
    keys = ["architectures", "attention_dropout", "bos_token_id", "eos_token_id", "hidden_act", "hidden_size",
            "initializer_range", "intermediate_size", "max_position_embeddings", "model_type",
            "num_attention_heads", "num_experts_per_tok", "num_hidden_layers", "num_key_value_heads",
            "num_local_experts", "output_router_logits", "rms_norm_eps", "rope_theta", "router_aux_loss_coef",
            "sliding_window", "tie_word_embeddings", "torch_dtype", "transformers_version", "use_cache",
            "vocab_size"]
    values = config | {"rope_theta": config["rope_parameters"]["rope_theta"],
                       "torch_dtype": str(dtype).removeprefix("torch."), "transformers_version": "4.36.0.dev0"}
    return {key: values[key] for key in keys}


def names(fixture):
    found = base_names(fixture)
    for layer in range(fixture.config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}.block_sparse_moe"
        found.add(f"{prefix}.gate.weight")
        found |= expert_names(f"{prefix}.experts", fixture.config["num_local_experts"], ("w1", "w2", "w3"))
    return found


FAMILY = Family(MixtralConfig, MixtralForCausalLM, names, FIXTURES, classic=classic_config)
