#!/usr/bin/env python3
"""Writes the tiny Mixtral models of tests/golden and what transformers computes from them.

Each fixture is a folder mixtral-NAME/ with a random model in the classic checkpoint layout (config.json and
model.safetensors, or an index and shards) and reference.safetensors, which holds prompts, logits and greedy
continuations. The weights are rounded to the storage type first; the reference is float32 arithmetic on those
rounded values, with eager attention and without a key/value cache.

A test compares token ids exactly, so no decision in a fixture may hang on rounding: each one is checked for the
distance between the best and second best logit of every greedy step, and between the k-th and (k+1)-th router
logit of every token in every layer. A seed that comes too close is refused; --try-seeds looks for a better one.

    python tools/make_goldens.py --out tests/golden
    python tools/make_goldens.py --try-seeds 20 --only window-f16

Versions: tools/requirements.txt. With those, on one machine, two runs write the same bytes.
"""

import argparse
import json
import shutil
import sys
import tempfile
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.utils import logging

GREEDY_TOKENS = 64
LOGITS_KEPT_MAX = 40  # prompts longer than this keep only N_SPREAD positions
N_SPREAD = 12
GREEDY_MARGIN_MIN = 5e-3
ROUTER_MARGIN_MIN = 5e-4
N_DISTINCT_MIN = 12  # a continuation that circles through fewer tokens tests little


@dataclass(frozen=True)
class Fixture:
    """One model. `config` goes to MixtralConfig; the gains scale the random weights (see fill_weights)."""

    name: str
    seed: int
    dtype: torch.dtype
    config: dict
    prompts: tuple = (1, 7, 33, 317)
    n_shards: int = 1
    classic_config: bool = False  # write config.json with the keys of 2023: rope_theta, torch_dtype
    gains: dict = field(default_factory=dict)


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


# ---- the model -----------------------------------------------------------------------------------------------


def make_config(fixture):
    keys = dict(fixture.config)
    rope = {"rope_type": "default", "rope_theta": keys.pop("rope_theta")}
    return MixtralConfig(max_position_embeddings=1024, rope_parameters=rope, **keys)


def gain_of(name, gains):
    """Standard deviation times sqrt(fan in), so that every projection makes an output of about this size."""
    table = {"embed": 1.0, "q_proj": 1.4, "k_proj": 1.4, "gate.weight": 2.0, "lm_head": 3.0} | gains
    for key, gain in table.items():
        if key in name:
            return gain
    return 1.3


def fill_weights(model, fixture):
    """Random weights, held in float32 but already rounded to the storage type."""
    generator = torch.Generator().manual_seed(fixture.seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name:
                values = 1.0 + 0.2 * noise
            elif "embed" in name:
                values = gain_of(name, fixture.gains) * noise
            else:
                values = gain_of(name, fixture.gains) / weight.shape[-1] ** 0.5 * noise
            weight.copy_(values.to(fixture.dtype))


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


def save_checkpoint(model, fixture, folder):
    stored = deepcopy(model).to(fixture.dtype)
    total_bytes = sum(p.numel() * p.element_size() for p in stored.parameters())
    shard_bytes = total_bytes if fixture.n_shards == 1 else int(total_bytes / fixture.n_shards * 1.1)
    stored.save_pretrained(folder, max_shard_size=shard_bytes)
    (folder / "generation_config.json").unlink(missing_ok=True)

    config_path = folder / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    if config["rope_parameters"]["rope_theta"] != fixture.config["rope_theta"]:
        raise RuntimeError(f"{fixture.name}: config.json lost rope_theta")
    if fixture.classic_config:
        text = json.dumps(classic_config(config, fixture.dtype), indent=2) + "\n"
        config_path.write_text(text, encoding="utf-8")


def classic_names(fixture):
    """The tensor names a Mixtral checkpoint must have, whatever transformers calls them in memory."""
    names = {"model.embed_tokens.weight", "model.norm.weight"}
    if not fixture.config.get("tie_word_embeddings", False):
        names.add("lm_head.weight")
    for layer in range(fixture.config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        names |= {f"{prefix}{norm}_layernorm.weight" for norm in ("input", "post_attention")}
        names |= {f"{prefix}self_attn.{x}_proj.weight" for x in "qkvo"}
        names.add(f"{prefix}block_sparse_moe.gate.weight")
        for expert in range(fixture.config["num_local_experts"]):
            names |= {f"{prefix}block_sparse_moe.experts.{expert}.w{i}.weight" for i in (1, 2, 3)}
    return names


def check_checkpoint(fixture, folder):
    """Names and storage types as written on disk."""
    dtype_of = {}
    shards = sorted(folder.glob("model*.safetensors"))
    for shard in shards:
        with safe_open(shard, "pt") as tensors:
            for name in tensors.keys():
                dtype_of[name] = tensors.get_tensor(name).dtype
    if set(dtype_of) != classic_names(fixture):
        raise RuntimeError(f"{fixture.name}: tensor names differ: {set(dtype_of) ^ classic_names(fixture)}")
    if set(dtype_of.values()) != {fixture.dtype}:
        raise RuntimeError(f"{fixture.name}: storage types are {set(dtype_of.values())}")
    if len(shards) != fixture.n_shards:
        raise RuntimeError(f"{fixture.name}: {len(shards)} shards instead of {fixture.n_shards}")


# ---- the reference -------------------------------------------------------------------------------------------


def forward(model, tokens):
    """Logits [n_tokens][vocab_size] and router logits [n_layers][n_tokens][n_experts]."""
    with torch.no_grad():
        out = model(torch.tensor([tokens]), use_cache=False, output_router_logits=True)
    return out.logits[0], torch.stack(out.router_logits)


def greedy(model, prompt):
    """The next GREEDY_TOKENS tokens, end of sequence or not, and the logits of each step."""
    tokens, steps = list(prompt), []
    for _ in range(GREEDY_TOKENS):
        logits, _ = forward(model, tokens)
        steps.append(logits[-1])
        tokens.append(int(logits[-1].argmax()))
    return tokens[len(prompt):], torch.stack(steps)


def margin(values, k):
    """Smallest distance between the k-th and the (k+1)-th largest value along the last axis."""
    top = values.topk(k + 1, dim=-1).values
    return float((top[..., k - 1] - top[..., k]).min())


def rounding_noise(model, tokens, logits):
    """Largest change of a logit when the same tokens pass one at a time through a cache."""
    cache, worst = None, 0.0
    for t, token in enumerate(tokens):
        with torch.no_grad():
            out = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        worst = max(worst, float((out.logits[0, -1] - logits[t]).abs().max()))
    return worst


def kept_positions(n_tokens):
    if n_tokens <= LOGITS_KEPT_MAX:
        return list(range(n_tokens))
    return [round(i * (n_tokens - 1) / (N_SPREAD - 1)) for i in range(N_SPREAD)]


def make_reference(model, fixture):
    """The tensors of reference.safetensors and the figures of the report."""
    generator = torch.Generator().manual_seed(fixture.seed)
    top_k = fixture.config["num_experts_per_tok"]
    tensors, report = {}, {"greedy": [], "router": [], "distinct": [], "noise": [], "std": []}
    for i, n_tokens in enumerate(fixture.prompts):
        prompt = torch.randint(0, fixture.config["vocab_size"], (n_tokens,), generator=generator).tolist()
        positions = kept_positions(n_tokens)
        logits, _ = forward(model, prompt)
        continuation, steps = greedy(model, prompt)
        tensors[f"p{i}.prompt"] = torch.tensor(prompt, dtype=torch.int32)
        tensors[f"p{i}.logits_pos"] = torch.tensor(positions, dtype=torch.int32)
        tensors[f"p{i}.logits"] = logits[positions].contiguous()
        tensors[f"p{i}.greedy"] = torch.tensor(continuation, dtype=torch.int32)
        tensors[f"p{i}.greedy_logits_last"] = steps[-1].contiguous()

        tokens = prompt + continuation
        logits, router_logits = forward(model, tokens)
        report["greedy"].append(margin(steps, 1))
        report["router"].append(margin(router_logits, top_k))
        report["distinct"].append(len(set(continuation)))
        report["noise"].append(rounding_noise(model, tokens, logits))
        report["std"].append(float(logits.std()))
    return tensors, report


def complaints(report):
    """Why a fixture is unfit; empty when it is fit."""
    found = []
    if min(report["greedy"]) < GREEDY_MARGIN_MIN:
        found.append(f"greedy margin below {GREEDY_MARGIN_MIN:g}")
    if min(report["router"]) < ROUTER_MARGIN_MIN:
        found.append(f"router margin below {ROUTER_MARGIN_MIN:g}")
    if min(report["distinct"]) < N_DISTINCT_MIN:
        found.append(f"fewer than {N_DISTINCT_MIN} distinct tokens")
    return ", ".join(found)


def print_report(fixture, report):
    print(f"mixtral-{fixture.name}: seed {fixture.seed}, greedy margin {min(report['greedy']):.2e}, "
          f"router margin {min(report['router']):.2e}, rounding noise {max(report['noise']):.1e}, "
          f"logit std {min(report['std']):.2f}, distinct tokens {report['distinct']} {complaints(report)}")


# ---- the fixtures --------------------------------------------------------------------------------------------


def load(folder):
    model = MixtralForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                               experts_implementation="eager")
    return model.eval()


def make_fixture(fixture, folder):
    """Writes one fixture and returns its report."""
    torch.manual_seed(fixture.seed)
    source = MixtralForCausalLM(make_config(fixture)).eval()
    source.set_attn_implementation("eager")
    source.set_experts_implementation("eager")
    fill_weights(source, fixture)
    save_checkpoint(source, fixture, folder)
    check_checkpoint(fixture, folder)

    model = load(folder)
    tensors, report = make_reference(model, fixture)
    last = f"p{len(fixture.prompts) - 1}"
    logits, _ = forward(source, tensors[f"{last}.prompt"].tolist())
    if not torch.equal(logits[tensors[f"{last}.logits_pos"]], tensors[f"{last}.logits"]):
        raise RuntimeError(f"{fixture.name}: the files do not load to the model that was saved")
    save_file(tensors, folder / "reference.safetensors")
    return report


def try_seeds(fixtures, n_seeds):
    for fixture in fixtures:
        for seed in range(1, n_seeds + 1):
            candidate = Fixture(**(vars(fixture) | {"seed": seed}))
            with tempfile.TemporaryDirectory() as folder:
                print_report(candidate, make_fixture(candidate, Path(folder)))
            sys.stdout.flush()


def write_all(fixtures, out):
    for fixture in fixtures:
        folder = out / f"mixtral-{fixture.name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        report = make_fixture(fixture, folder)
        print_report(fixture, report)
        if complaints(report):
            raise SystemExit(f"mixtral-{fixture.name}: {complaints(report)}; try other seeds")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("tests/golden"), help="folder of the fixtures")
    parser.add_argument("--only", choices=[f.name for f in FIXTURES], help="this fixture alone")
    parser.add_argument("--try-seeds", type=int, metavar="N", help="report on seeds 1..N and write nothing")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    fixtures = [f for f in FIXTURES if args.only in (None, f.name)]
    if args.try_seeds:
        try_seeds(fixtures, args.try_seeds)
    else:
        write_all(fixtures, args.out)


if __name__ == "__main__":
    main()
