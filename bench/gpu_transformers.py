#!/usr/bin/env python3
"""The same prompt through pikv and through transformers, on the same device, with the same weights.

    bench/gpu_transformers.py PIKV MODEL_DIR [--device cuda] [--tokens 64] [--json FILE]

Weights in f32: the greedy tokens must be the same, or the exit status is 1. In bf16 both round in other places, so
what is said is where they part first, and how far apart the two likeliest tokens were there for transformers. Decoding
is timed on both sides without the prompt, one sequence, and the ratio printed. Without torch, transformers or the device
it is skipped (77). The prompt is how --text begins.
"""
import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

SKIPPED = 77
START_SECONDS = 300
ROUNDS = 3  # the best of which counts

try:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(SKIPPED)


def convert(model_dir, to, dtype):
    """A copy with all weights in one type, under their own names: both programs read it."""
    to.mkdir()
    for path in sorted(model_dir.iterdir()):
        if path.name.endswith(".safetensors"):
            weights = {name: x.to(dtype).contiguous() for name, x in load_file(path).items()}
            save_file(weights, to / path.name, metadata={"format": "pt"})
        elif path.is_file() and path.name != "config.json":
            (to / path.name).write_bytes(path.read_bytes())
    config = json.loads((model_dir / "config.json").read_text())
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    (to / "config.json").write_text(json.dumps(config))
    return to


# ---- pikv ------------------------------------------------------------------------------------------


class Server:
    def __init__(self, binary, model_dir, device, log):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = open(log, "wb")
        self.process = subprocess.Popen([binary, "serve", str(model_dir), "--device", device, "--port", str(port),
                                         "--monitor-port", "0"], stdout=self.log, stderr=subprocess.STDOUT)

    def __enter__(self):
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                urllib.request.urlopen(self.url + "/health").close()
                return self
            except OSError:
                time.sleep(0.1)
        self.__exit__()
        sys.exit(f"pikv did not start:\n{Path(self.log.name).read_text(errors='replace')}")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.log.close()

    def post(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)

    def words(self, text, n):
        """The first n ids of a text."""
        return self.post("/tokenize", {"prompt": text, "add_special_tokens": True})["tokens"][:n]

    def greedy(self, prompt, n):
        """Its tokens and the seconds they took."""
        begin = time.perf_counter()
        reply = self.post("/v1/completions", {"prompt": prompt, "max_tokens": n, "temperature": 0, "ignore_eos": True,
                                              "return_token_ids": True})
        return reply["choices"][0]["token_ids"], time.perf_counter() - begin


def run_pikv(server, prompt, n):
    tokens, _ = server.greedy(prompt, n)  # what is read, recorded or cached once
    first = min(server.greedy(prompt, 1)[1] for _ in range(ROUNDS))
    whole = min(server.greedy(prompt, n)[1] for _ in range(ROUNDS))
    return tokens, (n - 1) / max(whole - first, 1e-9)


# ---- transformers ----------------------------------------------------------------------------------


@torch.no_grad()
def run_transformers(model, prompt, n, device):
    """Greedy tokens, how much likelier each was than the next one, and tokens per second behind the first."""
    tokens, margins, begin = [], [], 0
    ids, past = torch.tensor([prompt], device=device), None
    for i in range(n):
        out = model(ids, past_key_values=past, use_cache=True)
        past = out.past_key_values
        top = out.logits[0, -1].float().log_softmax(-1).topk(2)
        ids = top.indices[:1].view(1, 1)
        tokens.append(ids)
        margins.append(top.values[0] - top.values[1])
        if i == 0:
            int(ids)  # waits for the device
            begin = time.perf_counter()
    tokens = torch.cat(tokens).view(-1).tolist()
    seconds = time.perf_counter() - begin
    return tokens, torch.stack(margins).tolist(), (n - 1) / seconds


def compare(args, name, dtype, folder):
    model_dir = convert(Path(args.model_dir), folder / name, dtype)
    with Server(args.pikv, model_dir, args.device, folder / f"{name}.log") as server:
        prompt = server.words(Path(args.text).read_text(encoding="utf-8"), args.prompt_tokens)
        got, speed = run_pikv(server, prompt, args.tokens)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype).to(args.device).eval()
    rounds = [run_transformers(model, prompt, args.tokens, args.device) for _ in range(ROUNDS)]
    want, margins, their_speed = max(rounds, key=lambda r: r[2])
    if len(got) != args.tokens:
        sys.exit(f"{name}: pikv gave {len(got)} tokens instead of {args.tokens}")
    same = next((i for i in range(args.tokens) if got[i] != want[i]), args.tokens)
    return {"weights": name, "device": args.device, "prompt_tokens": len(prompt), "tokens": args.tokens,
            "tokens_alike": same, "margin_nats": margins[same] if same < args.tokens else None,
            "pikv_tokens_per_second": speed, "transformers_tokens_per_second": their_speed,
            "ratio": speed / their_speed}


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("pikv")
    p.add_argument("model_dir")
    p.add_argument("--device", default="cuda")
    p.add_argument("--text", default="README.md")
    p.add_argument("--prompt-tokens", type=int, default=64)
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--json", help="also write the results to this file")
    args = p.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("skipped: torch sees no GPU")
        return SKIPPED
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory() as folder:
        results = [compare(args, name, dtype, Path(folder))
                   for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16))]
    print("| weights | tokens alike | margin where they part | pikv tokens/s | transformers tokens/s | ratio |")
    print("|---|---:|---:|---:|---:|---:|")
    for r in results:
        margin = "-" if r["margin_nats"] is None else f"{r['margin_nats']:.4f} nats"
        print(f"| {r['weights']} | {r['tokens_alike']} of {r['tokens']} | {margin} | {r['pikv_tokens_per_second']:.1f} "
              f"| {r['transformers_tokens_per_second']:.1f} | {r['ratio']:.2f} |")
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=2) + "\n")
    return 0 if results[0]["tokens_alike"] == args.tokens else 1


if __name__ == "__main__":
    sys.exit(main())
