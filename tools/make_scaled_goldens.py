#!/usr/bin/env python3
"""Writes the models of tests/golden whose weights have scales, and packed_tensors.safetensors.

The models are those of make_goldens.py with codes instead of their matrices, as released checkpoints have them:

    mixtral-fp8-block     weight_scale_inv for blocks of 128 x 128, as in DeepSeek-V3 and Qwen3-FP8; sizes that are no
                          multiple of 128; scales of the first layer in F32, of the second in BF16
    mixtral-fp8-tensor    one weight_scale for a tensor, and input scales, which are not used
    deepseek_v3-fp8-heads as V3 is released: blocks of 128 x 128, heads of 192 rows of which 128 are one part, the choice's
                          biases in F32, and tensors of a layer behind the last one, which nothing reads
    deepseek_v3-fp8-cut   as V3.1, scales that are powers of two; heads that blocks do not fit; queries at once
    gpt_oss-mxfp4         experts' blocks and scales as in gpt-oss, the rows of gate and up in turns

The reference is float32 arithmetic on the values that codes and scales mean, which must be those that transformers
finds in the same codes and scales. packed_tensors.safetensors has random blocks and scales of MXFP4, and what transformers makes
of them (convert_moe_packed_tensors).

    python tools/make_scaled_goldens.py --out tests/golden
    python tools/make_scaled_goldens.py --try-seeds 20 --only fp8-block

Versions: tools/requirements.txt. With those, on one machine, two runs write the same bytes.
"""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.utils import logging

import make_goldens as goldens
from golden_families import families
from golden_families.deepseek_v3 import SMALL as DEEPSEEK
from golden_families.gpt_oss import EXACT_YARN, SINKS, SMALL

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
BLOCK = 128

BLOCK_CONFIG = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK],
                "modules_to_not_convert": ["lm_head"]}
TENSOR_CONFIG = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}
MXFP4_CONFIG = {"quant_method": "mxfp4",
                "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens",
                                           "lm_head"]}
HEADS_CONFIG = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
CUT_CONFIG = HEADS_CONFIG | {"scale_fmt": "ue8m0"}
CONFIGS = {"fp8-heads": HEADS_CONFIG, "fp8-cut": CUT_CONFIG, "fp8-block": BLOCK_CONFIG, "fp8-tensor": TENSOR_CONFIG, "mxfp4": MXFP4_CONFIG}
FP4_VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
MX_BLOCK = 32

FIXTURES = [
    goldens.Fixture(
        name="fp8-block",
        seed=3,
        dtype=torch.bfloat16,
        prompts=(1, 7, 33, 150),
        config=dict(vocab_size=64, hidden_size=160, intermediate_size=24, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=1, head_dim=32, num_local_experts=4,
                    num_experts_per_tok=2, rms_norm_eps=1e-5, rope_theta=1000000.0),
    ),
    goldens.Fixture(
        name="fp8-tensor",
        seed=13,
        dtype=torch.bfloat16,
        prompts=(1, 7, 33, 150),
        config=dict(vocab_size=80, hidden_size=48, intermediate_size=56, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_local_experts=4,
                    num_experts_per_tok=2, rms_norm_eps=1e-5, rope_theta=10000.0),
    ),
    goldens.Fixture(
        name="fp8-heads",
        seed=2,
        n_distinct_min=6,
        dtype=torch.bfloat16,
        prompts=(1, 7, 33, 90),
        classic_config=True,
        config=DEEPSEEK | dict(num_attention_heads=2, num_key_value_heads=2, qk_nope_head_dim=128, qk_rope_head_dim=64,
                               v_head_dim=40, n_routed_experts=4, n_group=2, topk_group=1, num_experts_per_tok=2),
        rope=dict(rope_type="yarn", factor=8.0, mscale=1.0, mscale_all_dim=1.0, beta_fast=32, beta_slow=1,
                  original_max_position_embeddings=64),
        max_positions=512,
    ),
    goldens.Fixture(
        name="fp8-cut",
        seed=3,
        n_distinct_min=6,
        dtype=torch.bfloat16,
        prompts=(1, 5, 70),
        config=DEEPSEEK | dict(q_lora_rank=None, num_attention_heads=5, num_key_value_heads=5, qk_nope_head_dim=22,
                               qk_rope_head_dim=10, v_head_dim=13, kv_lora_rank=130, n_routed_experts=4, n_group=1,
                               topk_group=1, num_experts_per_tok=2),
    ),
    goldens.Fixture(
        name="mxfp4",
        seed=4,
        n_distinct_min=6,
        dtype=torch.bfloat16,
        prompts=(1, 7, 120),
        config=SMALL | dict(hidden_size=64, intermediate_size=32),
        rope=EXACT_YARN,
        max_positions=512,
        gains=SINKS,
    ),
]


FAMILIES = {"mxfp4": "gpt_oss", "fp8-heads": "deepseek_v3", "fp8-cut": "deepseek_v3"}


def family_of(fixture):
    return FAMILIES.get(fixture.name, "mixtral")


# ---- codes and scales ----------------------------------------------------------------------------------------


def expand(scale, shape):
    """A scale for every value."""
    whole = scale.float().repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return whole[: shape[0], : shape[1]]


def quantise_blocks(weight, scale_dtype, is_power=False):
    """E4M3 codes and the scale of each block, whose largest value becomes 448; or the next power of two above that."""
    rows, cols = weight.shape
    scale = torch.empty(-(-rows // BLOCK), -(-cols // BLOCK))
    for r in range(scale.shape[0]):
        for c in range(scale.shape[1]):
            block = weight[r * BLOCK:(r + 1) * BLOCK, c * BLOCK:(c + 1) * BLOCK]
            scale[r, c] = block.float().abs().max() / FP8_MAX
    scale = (torch.exp2(scale.log2().ceil()) if is_power else scale).to(scale_dtype)
    whole = expand(scale, weight.shape)
    codes = (weight.float() / whole).clamp(-FP8_MAX, FP8_MAX).to(FP8)
    return codes, scale, codes.float() * whole


def quantise_packed(weight):
    """Blocks and scales of [expert][column][row], where columns are what rows of codes run over. The scale is the power
    of two below a block's largest value, over four: the largest code, six, is met or nearly so."""
    rows = weight.float().transpose(1, 2).contiguous()
    blocks = rows.view(*rows.shape[:2], -1, MX_BLOCK)
    power = (blocks.abs().amax(-1).log2().floor() - 2).clamp(-127, 127)
    scaled = blocks / torch.exp2(power)[..., None]
    codes = (scaled.abs()[..., None] - FP4_VALUES).abs().argmin(-1) + 8 * (scaled < 0)
    return (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8), (power + 127).to(torch.uint8)


def quantise_experts(tensors):
    """As quantise, of gpt-oss: what is meant is what transformers makes of the codes."""
    stored, meant = {}, {}
    for name, weight in tensors.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[name], meant[name] = weight, weight.float()
            continue
        blocks, scales = quantise_packed(weight)
        stored[name + "_blocks"], stored[name + "_scales"] = blocks, scales
        meant[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).contiguous()
        error = (meant[name] - weight.float()).square().mean() / weight.float().square().mean()
        if meant[name].shape != weight.shape or error > 0.03:
            raise RuntimeError(f"{name}: {error:.3f} of the weights' square is lost")
    return stored, meant


def is_quantised(name):
    return "_proj" in name or "experts" in name


def check_against_transformers(stored, name, values):
    scale = stored.get(name + "_scale_inv")
    block = None if scale is None else (BLOCK, BLOCK)
    scale = stored[name + "_scale"] if scale is None else scale
    if not torch.equal(_dequantize_fp8_weight(stored[name], scale, block, torch.float32), values):
        raise RuntimeError(f"{name}: transformers finds other values")


def quantise(tensors, fixture):
    """The tensors of the checkpoint, and the values that they mean."""
    if fixture.name == "mxfp4":
        return quantise_experts(tensors)
    stored, meant = {}, {}
    for name, weight in tensors.items():
        if not is_quantised(name):
            stored[name], meant[name] = weight, weight.float()
        elif fixture.name != "fp8-tensor":
            scale_dtype = torch.float32 if ".layers.0." in name or fixture.name != "fp8-block" else torch.bfloat16
            stored[name], stored[name + "_scale_inv"], meant[name] = quantise_blocks(weight, scale_dtype,
                                                                                     fixture.name == "fp8-cut")
        else:
            scale = weight.float().abs().max() / FP8_MAX
            stored[name] = (weight.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8)
            stored[name + "_scale"] = scale
            stored[name.removesuffix("weight") + "input_scale"] = torch.tensor(0.125)
            meant[name] = stored[name].float() * scale
        if is_quantised(name):
            check_against_transformers(stored, name, meant[name])
    if fixture.name == "fp8-heads":
        add_what_v3_has(stored, fixture)
    return stored, meant


def add_what_v3_has(stored, fixture):
    """Its biases of choices are F32, and behind the last layer is one for the next token but one."""
    for name in stored:
        if name.endswith("e_score_correction_bias"):
            stored[name] = stored[name].float()
    prefix, dim = f"model.layers.{fixture.config['num_hidden_layers']}.", fixture.config["hidden_size"]
    for name, shape in {"eh_proj": (dim, 2 * dim), "enorm": (dim,), "shared_head.norm": (dim,)}.items():
        stored[f"{prefix}{name}.weight"] = torch.zeros(shape, dtype=torch.bfloat16)


# ---- the models ----------------------------------------------------------------------------------------------


def write_config(folder, fixture):
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"] = CONFIGS[fixture.name]
    if fixture.name == "fp8-heads":
        config["num_nextn_predict_layers"] = 1
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def make_fixture(fixture, folder):
    """Writes one fixture and returns its report."""
    family = families()[family_of(fixture)]
    torch.manual_seed(fixture.seed)
    source = family.model(goldens.make_config(family, fixture)).eval()
    goldens.fill_weights(source, fixture)
    goldens.save_checkpoint(source, family, fixture, folder)
    stored, meant = quantise(load_file(folder / "model.safetensors"), fixture)
    with tempfile.TemporaryDirectory() as exact:
        shutil.copy(folder / "config.json", exact)
        save_file(meant, Path(exact) / "model.safetensors", {"format": "pt"})
        model = goldens.load(family, fixture, exact)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    write_config(folder, fixture)
    tensors, report = goldens.make_reference(model, family, fixture)
    save_file(tensors, folder / "reference.safetensors")
    return report


def try_seeds(fixtures, n_seeds):
    for fixture in fixtures:
        for seed in range(1, n_seeds + 1):
            candidate = replace(fixture, seed=seed)
            with tempfile.TemporaryDirectory() as folder:
                goldens.print_report(fixture.name, candidate, make_fixture(candidate, Path(folder)))
            sys.stdout.flush()


def write_all(fixtures, out):
    for fixture in fixtures:
        name = f"{family_of(fixture)}-{fixture.name}"
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        report = make_fixture(fixture, folder)
        goldens.print_report(name, fixture, report)
        if goldens.complaints(fixture, report):
            raise SystemExit(f"{name}: {goldens.complaints(fixture, report)}; try other seeds")


# ---- packed tensors ------------------------------------------------------------------------------------------


def write_packed(path):
    """Three experts of 6 rows of 96 columns; transformers returns them turned: [expert][column][row]."""
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, 256, (3, 6, 3, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(100, 150, (3, 6, 3), generator=generator, dtype=torch.uint8)
    values = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    save_file({"experts_blocks": blocks, "experts_scales": scales,
               "values": values.transpose(1, 2).contiguous()}, path)


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
        return
    write_all(fixtures, args.out)
    if args.only is None:
        write_packed(args.out / "packed_tensors.safetensors")


if __name__ == "__main__":
    main()
