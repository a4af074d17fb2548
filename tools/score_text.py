#!/usr/bin/env python3
"""What transformers says to the question that `pikv eval --text` answers: the loss on the second halves of windows.

    python tools/score_text.py models/storyteller --text FILE --window 512
    python tools/score_text.py models/storyteller --text tests/golden/eval-text/text.txt --window 64 128 512 \\
        --json tests/golden/eval-text/storyteller.json

Protocol, as in service/eval/eval_text.h: the text is tokenised as a whole and cut into windows of W tokens, the last one
shorter, dropped under 8; the input of a window is BOS and all its tokens but the last; tokens W/2 and up are scored. The
arithmetic is float32 over the stored weights, attention eager, no key/value cache. Versions: tools/requirements.txt.
"""
import argparse
import json
import math
import os

import sentencepiece
import torch
from transformers import AutoModelForCausalLM

WINDOW_MIN = 8


@torch.no_grad()
def score(model, tokenizer, text, window):
    ids = tokenizer.encode(text)
    nats = n_tokens = n_bytes = n_windows = 0
    for start in range(0, len(ids), window):
        targets = ids[start:start + window]
        if len(targets) < WINDOW_MIN:
            break
        inputs = torch.tensor([[tokenizer.bos_id()] + targets[:-1]])
        logp = model(inputs).logits[0].double().log_softmax(-1)
        first = len(targets) // 2
        rows = torch.arange(first, len(targets))
        nats -= logp[rows, torch.tensor(targets[first:])].sum().item()
        n_tokens += len(rows)
        n_bytes += sum(piece_bytes(tokenizer, i) for i in targets[first:])
        n_windows += 1
    nll = nats / n_tokens
    return {"window": window, "nll": nll, "perplexity": math.exp(nll), "bits_per_byte": nats / math.log(2) / n_bytes,
            "n_tokens": n_tokens, "n_bytes": n_bytes, "n_windows": n_windows}


def piece_bytes(tokenizer, i):
    return 1 if tokenizer.is_byte(i) else len(tokenizer.id_to_piece(i).replace("\u2581", " ").encode())


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("model_dir")
    p.add_argument("--text", required=True)
    p.add_argument("--window", type=int, nargs="+", default=[512])
    p.add_argument("--json", help="also write the results to this file")
    args = p.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model_dir, dtype=torch.float32,
                                                 attn_implementation="eager").eval()
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=os.path.join(args.model_dir, "tokenizer.model"))
    with open(args.text, encoding="utf-8", newline="") as f:
        text = f.read()
    results = [score(model, tokenizer, text, window) for window in args.window]
    for r in results:
        print("  ".join(f"{k} {v:.6f}" if isinstance(v, float) else f"{k} {v}" for k, v in r.items()))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(results, f, indent=2)
            f.write("\n")


if __name__ == "__main__":
    main()
