#!/usr/bin/env python3
"""Makes kv_bases.safetensors, the bases of the low-rank page codecs `lora` and `lora_plus`, from a model and a text.

    python tools/calibrate_kv.py models/storyteller --text train.txt.xz
    python tools/calibrate_kv.py tests/golden/mixtral-gqa-bf16 --random-ids

Windows of the text, spread over it evenly, run through transformers in float32. Queries and keys are taken behind RoPE,
since that is how keys are cached. Keys and values of the first positions are left out (--skip): they are sinks, which the
cache never encodes.

For each layer and key/value head, with means E over the text, a matrix A says which errors count:

    keys     A^2 = E[q q^T], summed over the query heads that share the head: errors of scores
    values   A^2 = W_O^T W_O of the same query heads: errors of what the layer writes
    lora       U = the `rank` leading eigenvectors of A E[x x^T] A
               down = U^T A,   up = U^T A^-1,   so that x^ = up^T down x
    lora_plus  the same for rank - 1 and x - b, b = E[x]; the last row of `down` is 0, the last of `up` is b

which makes E |A (x - x^)|^2 as small as it can be at that rank. What the file holds: model/kv_bases.h. Printed is the
share of E |A x|^2 that is lost, of both codecs. Versions: tools/requirements.txt.
"""
import argparse
import lzma
import os
import sys

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

RIDGE = 1e-6  # of A^2's mean eigenvalue: keeps A^-1 in bounds where no query ever looks


class Moments:
    """Sums of x x^T and of x over many vectors, per head, in float64."""

    def __init__(self, n_heads, dim):
        self.n = 0
        self.second = np.zeros((n_heads, dim, dim))
        self.first = np.zeros((n_heads, dim))

    def add(self, x):  # [n_heads][n][dim]
        x = x.double().numpy()
        self.n += x.shape[1]
        self.second += np.einsum("hni,hnj->hij", x, x)
        self.first += x.sum(1)


class Watch:
    """Takes queries, keys and values from every layer of a running model."""

    def __init__(self, model, n_skip):
        self.config = c = model.config
        self.n_skip = n_skip
        self.dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        heads = [c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads]
        self.layers = [[Moments(n, self.dim) for n in heads] for _ in range(c.num_hidden_layers)]
        self.module = sys.modules[type(model).__module__]
        self.attend = self.module.eager_attention_forward
        self.module.eager_attention_forward = self.forward

    def forward(self, module, query, key, value, *args, **kwargs):
        q, k, v = self.layers[module.layer_idx]
        q.add(query[0, :, self.n_skip:])
        k.add(key[0, :, self.n_skip:])
        v.add(value[0, :, self.n_skip:])
        return self.attend(module, query, key, value, *args, **kwargs)

    def close(self):
        self.module.eager_attention_forward = self.attend


def root(squared):
    """A and A^-1 of A^2."""
    squared = squared + np.eye(len(squared)) * RIDGE * max(np.trace(squared) / len(squared), 1e-30)
    w, u = np.linalg.eigh(squared)
    w = np.sqrt(w)
    return (u * w) @ u.T, (u / w) @ u.T


def leading(matrix, n):
    """The n leading eigenvectors, as rows; signs fixed so that runs agree."""
    _, u = np.linalg.eigh(matrix)
    u = u[:, ::-1][:, :n].T
    largest = np.take_along_axis(u, np.abs(u).argmax(1)[:, None], 1)
    return u * np.where(largest < 0, -1.0, 1.0)


def fit(second, mean, weight, rank):
    """down and up of `lora` (mean None) or `lora_plus`, and the share of the weighted energy that is lost."""
    a, inverse = root(weight)
    n = rank - (mean is not None)
    spread = second if mean is None else second - np.outer(mean, mean)
    u = leading(a @ spread @ a, n)
    down, up = u @ a, u @ inverse
    rest = a @ (np.eye(len(a)) - up.T @ down)
    lost = np.trace(rest @ spread @ rest.T) / np.trace(a @ second @ a)
    if mean is not None:
        down = np.vstack([down, np.zeros_like(mean)])
        up = np.vstack([up, mean])
    return down, up, lost


def output_weights(layer, n_kv_heads, dim):
    """W_O^T W_O of the query heads of each key/value head."""
    w = layer.self_attn.o_proj.weight.detach().double().numpy()
    w = w.reshape(w.shape[0], n_kv_heads, -1, dim)
    return np.einsum("ihgc,ihgd->hcd", w, w)


def make_bases(model, watch, rank):
    tensors, lost = {}, {"lora": [], "lora_plus": []}
    n_kv_heads, dim = watch.config.num_key_value_heads, watch.dim
    for index, (q, k, v) in enumerate(watch.layers):
        looks = q.second.reshape(n_kv_heads, -1, dim, dim).sum(1) / q.n
        writes = output_weights(model.model.layers[index], n_kv_heads, dim)
        for name, with_mean in (("lora", False), ("lora_plus", True)):
            for side, moments, weights in (("k", k, looks), ("v", v, writes)):
                fits = [fit(moments.second[h] / moments.n, moments.first[h] / moments.n if with_mean else None,
                            weights[h], rank) for h in range(n_kv_heads)]
                lost[name].append([f[2] for f in fits])
                for i, which in enumerate(("down", "up")):
                    tensors[f"{name}.{index}.{side}_{which}"] = np.stack([f[i] for f in fits]).astype(np.float32)
    return tensors, lost


def read_text(path):
    with (lzma.open if path.endswith(".xz") else open)(path, "rt", encoding="utf-8", newline="") as f:
        return f.read()


def windows_of_text(args):
    import sentencepiece

    tokenizer = sentencepiece.SentencePieceProcessor(model_file=os.path.join(args.model_dir, "tokenizer.model"))
    text, n = read_text(args.text), max(1, args.tokens // args.window)
    for i in range(n):  # pieces of about 8 characters at most: enough text for a window
        at = len(text) * i // n
        ids = tokenizer.encode(text[at:at + 8 * args.window])[1:]  # the first may be half a word
        yield [tokenizer.bos_id()] + ids[:args.window - 1]


def random_windows(args, n_vocab):
    draw = np.random.default_rng(args.seed)
    for _ in range(max(1, args.tokens // args.window)):
        yield draw.integers(0, n_vocab, args.window).tolist()


@torch.no_grad()
def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("model_dir")
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", help="plain or .xz; not what quality is measured on afterwards")
    source.add_argument("--random-ids", action="store_true", help="for test models, which know no text")
    p.add_argument("--tokens", type=int, default=65536)
    p.add_argument("--window", type=int, default=512, help="tokens of one pass")
    p.add_argument("--rank", type=float, default=0.5, help="of a head's channels")
    p.add_argument("--skip", type=int, default=4, help="first positions of a window to leave out")
    p.add_argument("--seed", type=int, default=1, help="of random ids")
    p.add_argument("--out", help="default: kv_bases.safetensors in the model's folder")
    args = p.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model_dir, dtype=torch.float32,
                                                 attn_implementation="eager").eval()
    watch = Watch(model, args.skip)
    rank = round(watch.dim * args.rank)
    if not 2 <= rank <= watch.dim:
        sys.exit(f"--rank: {args.rank} of {watch.dim} channels is {rank}, outside [2, {watch.dim}]")
    windows = random_windows(args, model.config.vocab_size) if args.random_ids else windows_of_text(args)
    for ids in windows:
        model(torch.tensor([ids]), use_cache=False)
    watch.close()
    tensors, lost = make_bases(model, watch, rank)
    save_file(tensors, args.out or os.path.join(args.model_dir, "kv_bases.safetensors"))
    for name, of_sides in lost.items():
        for side, index in (("keys", 0), ("values", 1)):
            rows = np.array(of_sides[index::2])
            print(f"{name} rank {rank} of {watch.dim}, {side}: lost {rows.mean():.4f} on average, {rows.max():.4f} at most")


if __name__ == "__main__":
    main()
