#!/usr/bin/env python3
"""docs/models.md: which checkpoints load, and how that was verified.

`tools/models_doc.py build/dev/pikv` asks that binary (`pikv inspect`) about every model in tests/golden, reads from
their references what was compared and from the test sources which tests do it, lets the binary refuse what it lacks,
and writes docs/models.md. `--check` only says whether the file is as it would be written: 0, or 1. A family without
three models is an error.
"""

import argparse
import json
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILE = ROOT / "docs/models.md"
GOLDEN = ROOT / "tests/golden"
FIXTURES_MIN = 3

# model_type: checkpoints of that type, what is particular about it.
FAMILIES = {
    "mixtral": ("Mixtral 8x7B, 8x22B", "weights of the chosen experts sum to one; sliding window"),
    "olmoe": ("OLMoE-1B-7B", "norms of q and k over the whole projection, clipping, probabilities as they are"),
    "qwen2_moe": ("Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B", "shared expert with its gate, biases of q, k, v, dense layers"),
    "qwen3_moe": ("Qwen3-30B-A3B, Qwen3-235B-A22B", "norms of q and k per head, a head_dim of its own"),
    "granitemoe": ("Granite 3.x 1B-A400M, 3B-A800M", "multipliers of embedding, attention, residuals and logits; "
                   "experts in one tensor"),
    "granitemoeshared": ("Granite MoE with a shared expert", "as granitemoe, and an expert that all tokens pass"),
    "phimoe": ("Phi-3.5-MoE", "layer norms with biases, sparsemixer routing, longrope, a bias of the head"),
    "deepseek_v2": ("DeepSeek-V2, V2.5, V2-Lite", "latent attention (the latent is what the cache holds), dense first layers, "
                    "shared experts, groups of experts"),
    "deepseek_v3": ("DeepSeek-V3, R1, V3.1", "as deepseek_v2 with sigmoid scores and a bias for choosing; in fp8 as released; "
                    "the layer for a second token at once is not used"),
    "gpt_oss": ("gpt-oss-20b, 120b", "sinks, experts with biases, clamped SwiGLU, windows in every other layer"),
}
# What is asked of a copy of a small model, and must be refused.
REFUSED = [
    ("model_type", "mamba"),
    ("hidden_act", "gelu"),
    ("rope_scaling", {"rope_type": "su", "factor": 2.0}),
    ("quantization_config", {"quant_method": "gptq", "bits": 4}),
    ("quantization_config", {"quant_method": "awq"}),
    ("attn_logit_softcapping", 50.0),
    ("attention_bias", True),
]
SUITES = {"mixtral": ["golden_test.c", "golden_ranks_test.c", "golden_codec_test.c"]}
SUITE_OF_OTHERS = ["golden_families_test.c"]


def families_of_source():
    text = (ROOT / "model/family.h").read_text()
    table = re.search(r"#define MODEL_FAMILY_LIST\(X\)(.*?)\n\n", text, re.S)
    return re.findall(r"X\((\w+)\)", table.group(1))


def inspect(binary, folder):
    done = subprocess.run([binary, "inspect", folder, "--json"], capture_output=True, text=True, timeout=120,
                          check=False)
    return json.loads(done.stdout), done.stderr


def header_of(path):
    with path.open("rb") as file:
        return json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))


def reference_of(folder):
    """Prompts, positions whose logits are compared, greedy tokens that must be equal."""
    header = header_of(folder / "reference.safetensors")
    count = {key: [t["shape"][0] for name, t in header.items() if name.endswith("." + key)]
             for key in ("prompt", "logits", "greedy")}
    return len(count["prompt"]), sum(count["logits"]), sum(count["greedy"])


def stored_as(report):
    types = {key.removesuffix("_bytes").lower() for key in report["weights"] if key.endswith("_bytes")}
    return ", ".join(sorted(types))


def features_of(report, config):
    shape, context = report["shape"], report["context"]
    words = [f"{shape['heads']} / {shape['kv_heads']} heads of {shape['key_channels']}"
             + (f" and {shape['value_channels']}" if shape["value_channels"] != shape["key_channels"] else ""),
             f"{shape['experts']} experts, top {shape['experts_per_token']}"]
    words += [f"shared expert of {shape['shared_expert_width']}"] if shape["shared_expert_width"] else []
    words += [f"{shape['dense_layers']} of {shape['layers']} layers dense"] if shape["dense_layers"] else []
    words += [f"window {shape['window']} in {shape['windowed_layers']} of {shape['layers']} layers"] \
        if shape["windowed_layers"] else []
    words += [f"RoPE {context['rope']}"] if context["rope"] != "default" else []
    words += ["tied head"] if shape["tied_embeddings"] else []
    method = (config.get("quantization_config") or {}).get("quant_method")
    words += [f"weights in {method}"] if method else []
    return "; ".join(words)


def models_of(binary):
    """model_type: rows of its models."""
    rows = {}
    for path in sorted(GOLDEN.glob("*/reference.safetensors")):
        report, said = inspect(binary, path.parent)
        if "fault" in report["family"] or "fault" in report["weights"]:
            raise SystemExit(f"{path.parent.name}: {said}")
        config = json.loads((path.parent / "config.json").read_text())
        prompts, positions, tokens = reference_of(path.parent)
        rows.setdefault(report["family"]["model_type"], []).append(
            f"| `{path.parent.name}` | {stored_as(report)} | {features_of(report, config)} | {prompts} | {positions} |"
            f" {tokens} |\n")
    return rows


def promises_of(family):
    names = []
    for name in SUITES.get(family, SUITE_OF_OTHERS):
        names += re.findall(r"TEST_CASE(?:_SECONDS)?\((\w+)", (GOLDEN / name).read_text())
    return [name.replace("_", " ") for name in names]


def refusals(binary):
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder) / "model"
        shutil.copytree(GOLDEN / "mixtral-base-f32", model)
        config = json.loads((model / "config.json").read_text())
        for key, value in REFUSED:
            (model / "config.json").write_text(json.dumps({**config, key: value}))
            report, _ = inspect(binary, model)
            if "fault" not in report["family"]:
                raise SystemExit(f"{key}: {value} is not refused")
            lines.append(report["family"]["fault"])
    return lines


def table(rows):
    return ("| model | stored | shape | prompts | positions | tokens |\n|---|---|---|---:|---:|---:|\n"
            + "".join(rows))


def page(binary):
    families, rows = families_of_source(), models_of(binary)
    out = ["# Models\n\nWritten by `tools/models_doc.py` from the program, its tests and their references; a test "
           "holds it to them.\n\nA folder downloaded from a model hub is served as it is: `config.json`, "
           "`*.safetensors`, a tokenizer. `pikv inspect DIR` says\nwhat is in it and, in one line, what is in the "
           "way.\n\n## Families\n\n| model_type | checkpoints | what it has | verified with |\n|---|---|---|---|\n"]
    for family in families:
        n = len(rows.get(family, []))
        if n < FIXTURES_MIN:
            raise SystemExit(f"{family}: {n} models in tests/golden are fewer than {FIXTURES_MIN}")
        checkpoints, about = FAMILIES[family]
        out.append(f"| `{family}` | {checkpoints} | {about} | {n} models |\n")
    out.append("\nVerified are small models with random weights of every family, against transformers in float32: "
               "logits at\n*positions* to 1e-4 of the largest, greedy *tokens* exactly. No released checkpoint has "
               "been run: none could be had where\nthis was tested.\n")
    for family in families:
        out.append(f"\n## {family}\n\n{table(rows[family])}\n")
        out.append("Tests: " + "; ".join(promises_of(family)) + ".\n")
    out.append("\n## Refused\n\nWhat a config asks for and this build does not compute ends the start:\n\n```\n"
               + "".join(line + "\n" for line in refusals(binary)) + "```\n")
    return "".join(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=pathlib.Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    text = page(args.binary.resolve())
    if not args.check:
        FILE.write_text(text)
    elif FILE.read_text() != text:
        sys.exit(f"docs/models.md is not what tools/models_doc.py {args.binary} writes")


if __name__ == "__main__":
    main()
