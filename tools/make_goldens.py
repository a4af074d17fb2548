#!/usr/bin/env python3
"""Writes the tiny models of tests/golden and what transformers computes from them.

Each fixture (golden_families/) is a folder FAMILY-NAME/ with a random model in the classic checkpoint layout (config.json and
model.safetensors, or an index and shards) and reference.safetensors, which holds prompts, logits and greedy
continuations. The weights are rounded to the storage type first; the reference is float32 arithmetic on those
rounded values, with eager attention and without a key/value cache.

A test compares token ids exactly, so no decision in a fixture may hang on rounding: each one is checked for the
distance between the best and second best logit of every greedy step, and between the k-th and (k+1)-th router
logit of every token in every layer. A seed that comes too close is refused; --try-seeds looks for a better one.

    python tools/make_goldens.py --out tests/golden
    python tools/make_goldens.py --try-seeds 20 --only mixtral-window-f16

Versions: tools/requirements.txt. With those, on one machine, two runs write the same bytes.
"""

import argparse
import json
import shutil
import sys
import tempfile
from copy import deepcopy
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import logging

from golden_families import Fixture, families

GREEDY_TOKENS = 64
LOGITS_KEPT_MAX = 40  # prompts longer than this keep only N_SPREAD positions
N_SPREAD = 12
GREEDY_MARGIN_MIN = 5e-3
ROUTER_MARGIN_MIN = 5e-4


# ---- the model -----------------------------------------------------------------------------------------------


def make_config(family, fixture):
    keys = dict(fixture.config)
    rope = {"rope_type": "default", "rope_theta": keys.pop("rope_theta")} | fixture.rope
    return family.config(max_position_embeddings=fixture.max_positions, rope_parameters=rope, **keys)


def gain_of(name, gains):
    """Standard deviation times sqrt(fan in), so that every projection makes an output of about this size."""
    table = {"embed": 1.0, "q_proj": 1.4, "k_proj": 1.4, "gate.weight": 2.0, "router": 2.0, "lm_head": 3.0} | gains
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
            if name.endswith("bias"):
                values = 0.4 * noise
            elif "norm" in name:
                values = 1.0 + 0.2 * noise
            elif "embed" in name:
                values = gain_of(name, fixture.gains) * noise
            else:
                values = gain_of(name, fixture.gains) / weight.shape[-1] ** 0.5 * noise
            weight.copy_(values.to(fixture.dtype))


def old_spelling(config, dtype):
    """config.json with rope_theta beside rope_scaling, and torch_dtype."""
    rope = dict(config.pop("rope_parameters"))
    config["rope_theta"] = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    config["rope_scaling"] = rope if rope["type"] != "default" else None
    config.pop("dtype")
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    return config


def save_checkpoint(model, family, fixture, folder):
    stored = deepcopy(model).to(fixture.dtype)
    total_bytes = sum(p.numel() * p.element_size() for p in stored.parameters())
    shard_bytes = 2 * total_bytes if fixture.n_shards == 1 else int(total_bytes / fixture.n_shards * 1.1)
    stored.save_pretrained(folder, max_shard_size=shard_bytes)
    (folder / "generation_config.json").unlink(missing_ok=True)

    config_path = folder / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    if config["rope_parameters"]["rope_theta"] != fixture.config["rope_theta"]:
        raise RuntimeError(f"{fixture.name}: config.json lost rope_theta")
    if fixture.classic_config:
        spelled = family.classic or old_spelling
        text = json.dumps(spelled(config, fixture.dtype), indent=2) + "\n"
        config_path.write_text(text, encoding="utf-8")


def check_checkpoint(family, fixture, folder):
    """Names and storage types as written on disk."""
    dtype_of = {}
    shards = sorted(folder.glob("model*.safetensors"))
    for shard in shards:
        with safe_open(shard, "pt") as tensors:
            for name in tensors.keys():
                dtype_of[name] = tensors.get_tensor(name).dtype
    if set(dtype_of) != family.names(fixture):
        raise RuntimeError(f"{fixture.name}: tensor names differ: {set(dtype_of) ^ family.names(fixture)}")
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


def make_reference(model, family, fixture):
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
        decide = family.router_margin
        report["router"].append(decide(router_logits, fixture) if decide else margin(router_logits, top_k))
        report["distinct"].append(len(set(continuation)))
        report["noise"].append(rounding_noise(model, tokens, logits))
        report["std"].append(float(logits.std()))
    if fixture.n_served:
        tensors["n_positions"] = torch.tensor([fixture.n_served], dtype=torch.int32)
    return tensors, report


def complaints(fixture, report):
    """Why a fixture is unfit; empty when it is fit."""
    found = []
    if min(report["greedy"]) < GREEDY_MARGIN_MIN:
        found.append(f"greedy margin below {GREEDY_MARGIN_MIN:g}")
    if min(report["router"]) < ROUTER_MARGIN_MIN:
        found.append(f"router margin below {ROUTER_MARGIN_MIN:g}")
    if min(report["distinct"]) < fixture.n_distinct_min:
        found.append(f"fewer than {fixture.n_distinct_min} distinct tokens")
    return ", ".join(found)


def print_report(name, fixture, report):
    print(f"{name}: seed {fixture.seed}, greedy margin {min(report['greedy']):.2e}, "
          f"router margin {min(report['router']):.2e}, rounding noise {max(report['noise']):.1e}, "
          f"logit std {min(report['std']):.2f}, distinct tokens {report['distinct']} {complaints(fixture, report)}")


# ---- the fixtures --------------------------------------------------------------------------------------------


def fix_rope(model, n_served):
    """The frequencies that transformers has for n_served positions, at every length: cached keys cannot be turned
    again, so pikv chooses once."""
    rotary, rope = model.model.rotary_emb, model.config.rope_parameters
    inv_freq, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](model.config, seq_len=n_served)
    if "long_mscale" in rope:
        is_long = n_served > rope["original_max_position_embeddings"]
        scale = rope["long_mscale" if is_long else "short_mscale"]

    def turn(x, position_ids):
        angles = position_ids[..., None].float() * inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * scale).to(x.dtype), (angles.sin() * scale).to(x.dtype)

    rotary.forward = turn


def load(family, fixture, folder):
    model = family.model.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                         experts_implementation="eager")
    if fixture.is_rope_fixed:
        fix_rope(model, fixture.n_served)
    return model.eval()


def make_fixture(family, fixture, folder):
    """Writes one fixture and returns its report."""
    torch.manual_seed(fixture.seed)
    source = family.model(make_config(family, fixture)).eval()
    source.set_attn_implementation("eager")
    source.set_experts_implementation("eager")
    fill_weights(source, fixture)
    save_checkpoint(source, family, fixture, folder)
    check_checkpoint(family, fixture, folder)

    model = load(family, fixture, folder)
    tensors, report = make_reference(model, family, fixture)
    if fixture.is_rope_fixed:
        fix_rope(source, fixture.n_served)
    last = f"p{len(fixture.prompts) - 1}"
    logits, _ = forward(source, tensors[f"{last}.prompt"].tolist())
    if not torch.equal(logits[tensors[f"{last}.logits_pos"]], tensors[f"{last}.logits"]):
        raise RuntimeError(f"{fixture.name}: the files do not load to the model that was saved")
    save_file(tensors, folder / "reference.safetensors")
    return report


def try_seeds(chosen, n_seeds):
    for name, (family, fixture) in chosen.items():
        for seed in range(1, n_seeds + 1):
            candidate = Fixture(**(vars(fixture) | {"seed": seed}))
            with tempfile.TemporaryDirectory() as folder:
                print_report(name, candidate, make_fixture(family, candidate, Path(folder)))
            sys.stdout.flush()


def write_all(chosen, out):
    for name, (family, fixture) in chosen.items():
        folder = out / name
        kept = {path.name: path.read_bytes() for path in folder.glob("kv_bases.safetensors")}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        report = make_fixture(family, fixture, folder)
        for other, data in kept.items():  # of another tool
            (folder / other).write_bytes(data)
        print_report(name, fixture, report)
        if complaints(fixture, report):
            raise SystemExit(f"{name}: {complaints(fixture, report)}; try other seeds")


def main():
    every = {f"{name}-{fixture.name}": (family, fixture)
             for name, family in families().items() for fixture in family.fixtures}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("tests/golden"), help="folder of the fixtures")
    parser.add_argument("--only", metavar="START", help="fixtures whose name starts so: a family or one")
    parser.add_argument("--try-seeds", type=int, metavar="N", help="report on seeds 1..N and write nothing")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    chosen = {name: both for name, both in every.items() if name.startswith(args.only or "")}
    if not chosen:
        parser.error(f"no fixture is called {args.only}")
    if args.try_seeds:
        try_seeds(chosen, args.try_seeds)
    else:
        write_all(chosen, args.out)


if __name__ == "__main__":
    main()
