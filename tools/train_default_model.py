#!/usr/bin/env python3
"""Trains the default model, models/storyteller: a small Mixtral with its own tokenizer.

    python tools/train_default_model.py --corpus train.txt.xz --valid valid.txt.xz \\
        --work /var/tmp/storyteller --out models/storyteller --minutes 85 --verify

The stages, each kept in the work directory so that a second start goes on where the first one stopped:

    corpus  ->  tokenizer.model  ->  train.npy, valid.npy  ->  checkpoint.pt, log.csv  ->  --out

The network is written out here instead of being taken from transformers, to have the balance loss, the loads
and the optimizer's stacked matrices at hand; tokens are sorted by expert, one product per expert.  --verify
loads what was written with transformers and compares the two, so this copy cannot drift away from the
published architecture.

The schedule is warm-up, constant rate, linear decay, and depends only on the progress of the run, from 0 to 1.
With --steps progress is counted in steps and the run is reproducible from its seed; with --minutes it is
measured in training time.  A file `budget` in the work directory (a number in the same unit) changes the end
of a run under way; a file `export` asks for an export of the present weights.
"""
import argparse
import csv
import json
import lzma
import math
import os
import random
import re
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")     # threads that wait must sleep: spinning on a machine
os.environ.setdefault("KMP_BLOCKTIME", "0")             # shared with other work costs most of the speed

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

BOOK_LINE = "<|book|>"
BOS, EOS = 1, 2
VOCAB = 4096
SAMPLE_CHARS = 10_000_000          # text shown to the tokenizer's trainer
VALID_WINDOW = 512                 # tokens per window when perplexity is measured

# progress of the run at which each part of the schedule starts
DECAY_FROM, LONG_FROM = 0.55, 0.88
BALANCE_EARLY, BALANCE_LATE = 0.02, 0.05   # weight of the balance loss, before and after DECAY_FROM
WARMUP_STEPS = 30
SHORT_CONTEXT, LONG_CONTEXT = 256, 2048

MUON_RATE, MUON_MOMENTUM, MUON_DECAY = 0.02, 0.95, 0.05
ADAM_RATES = {"embed": 8e-3, "head": 3e-3, "small": 3e-3}

CONFIG = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
    "vocab_size": VOCAB, "hidden_size": 256, "intermediate_size": 192, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    "num_local_experts": 8, "num_experts_per_tok": 2,
    "max_position_embeddings": 2048, "rope_theta": 10000.0, "sliding_window": None,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "attention_dropout": 0.0, "initializer_range": 0.02,
    "router_aux_loss_coef": BALANCE_LATE, "router_jitter_noise": 0.0, "output_router_logits": False,
    "tie_word_embeddings": False, "use_cache": True,
    "bos_token_id": BOS, "eos_token_id": EOS, "torch_dtype": "bfloat16",
}


# ---------------------------------------------------------------- text and tokens

def read_text(path):
    with (lzma.open if path.endswith(".xz") else open)(path, "rt", encoding="utf-8") as f:
        return f.read()


def split_documents(text):
    """Books, one string each.  The separator lines themselves are dropped."""
    return [d.strip("\n") for d in re.split(rf"^{re.escape(BOOK_LINE)}$", text, flags=re.M) if d.strip()]


def split_stories(documents):
    """The last document of the corpus is short stories, where a single newline separates two of them."""
    return documents[:-1] + [s for s in re.split(r"(?<!\n)\n(?!\n)", documents[-1]) if s.strip()]


def train_tokenizer(text, prefix, seed):
    paragraphs = [p for p in text.split("\n") if p and p != BOOK_LINE]
    random.Random(seed).shuffle(paragraphs)
    sample, chars = [], 0
    while paragraphs and chars < SAMPLE_CHARS:
        sample.append(paragraphs.pop())
        chars += len(sample[-1])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sample), model_prefix=prefix, model_type="bpe", vocab_size=VOCAB,
        byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True, character_coverage=1.0,
        normalization_rule_name="identity", remove_extra_whitespaces=False, max_sentence_length=16384,
        unk_id=0, bos_id=BOS, eos_id=EOS, pad_id=-1, num_threads=2, minloglevel=1)


def load_tokens(args):
    """The tokenizer, the training stream (documents, each ended by EOS) and the validation stream (plain)."""
    prefix = os.path.join(args.work, "tokenizer")
    if not os.path.exists(prefix + ".model"):
        train_tokenizer(read_text(args.corpus), prefix, args.seed)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=prefix + ".model")
    streams = {}
    for name, path in (("train", args.corpus), ("valid", args.valid)):
        cache = os.path.join(args.work, name + ".npy")
        if not os.path.exists(cache):
            documents = split_documents(read_text(path))
            if name == "train":
                documents = split_stories(documents)
            ids = []
            for document in documents:
                ids += tokenizer.encode(document) + ([EOS] if name == "train" else [])
            np.save(cache, np.array(ids, dtype=np.uint16))
        streams[name] = np.load(cache)
    valid_bytes = sum(len(d.encode()) for d in split_documents(read_text(args.valid)))
    return tokenizer, streams["train"], streams["valid"], valid_bytes


class Walk:
    """An endless shuffled walk over the stream in windows of one length; each epoch has its own order and offset."""

    def __init__(self, tokens, context, seed):
        self.tokens, self.context, self.seed = tokens, context, seed
        self.per_epoch = len(tokens) // context - 1
        self.epoch = None

    def window(self, position):
        epoch, index = divmod(position, self.per_epoch)
        if epoch != self.epoch:
            rng = np.random.default_rng((self.seed, self.context, epoch))
            self.epoch, self.offset = epoch, int(rng.integers(self.context))
            self.order = rng.permutation(self.per_epoch)
        start = self.offset + int(self.order[index]) * self.context
        return self.tokens[start:start + self.context]

    def batch(self, position, n_windows):
        """Inputs and targets [n_windows][context]: a window's input is BOS and all of it but the last token."""
        rows = [self.window(i) for i in range(position, position + n_windows)]
        targets = torch.from_numpy(np.stack(rows).astype(np.int64))
        return shift_in_bos(targets), targets


def shift_in_bos(targets):
    return torch.cat([torch.full_like(targets[:, :1], BOS), targets[:, :-1]], dim=1)


# ---------------------------------------------------------------- the network

class Layer(torch.nn.Module):
    """One Mixtral layer.  The experts' matrices are stacked: w1, w3 [n_experts][ffn][dim], w2 transposed."""

    def __init__(self, c):
        super().__init__()
        dim, ffn, n_experts = c["hidden_size"], c["intermediate_size"], c["num_local_experts"]
        q_dim, kv_dim = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
        self.c = c
        self.norm1 = torch.nn.Parameter(torch.ones(dim))
        self.norm2 = torch.nn.Parameter(torch.ones(dim))
        self.gate = matrix(n_experts, dim)
        self.q, self.k, self.v = matrix(q_dim, dim), matrix(kv_dim, dim), matrix(kv_dim, dim)
        self.o = matrix(dim, q_dim, gain=0.3)
        self.w1, self.w3 = matrix(n_experts, ffn, dim), matrix(n_experts, ffn, dim)
        self.w2 = matrix(n_experts, dim, ffn, gain=0.3)

    def attention(self, x, cos, sin):
        n, t, _ = x.shape
        d = self.c["head_dim"]
        q, k, v = (F.linear(x, w).view(n, t, -1, d).transpose(1, 2) for w in (self.q, self.k, self.v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = self.c["num_attention_heads"] // self.c["num_key_value_heads"]
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.linear(y.transpose(1, 2).reshape(n, t, -1), self.o)

    def experts(self, x):
        """[n_rows][dim] -> the same, the balance loss of this layer, and tokens per expert."""
        n_experts, top_k = self.c["num_local_experts"], self.c["num_experts_per_tok"]
        p = F.linear(x, self.gate).softmax(dim=-1)
        weight, chosen = p.topk(top_k, dim=-1)
        weight = weight / weight.sum(dim=-1, keepdim=True)
        load = torch.bincount(chosen.flatten(), minlength=n_experts)
        balance = n_experts * (load.float() / load.sum() * p.mean(dim=0)).sum()
        order = chosen.flatten().argsort(stable=True)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
        rows = x.index_select(0, order // top_k).split(load.tolist())
        parts = [F.linear(F.silu(F.linear(r, w1)) * F.linear(r, w3), w2)
                 for r, w1, w2, w3 in zip(rows, self.w1.unbind(0), self.w2.unbind(0), self.w3.unbind(0))]
        y = torch.cat(parts).index_select(0, place).view(-1, top_k, x.shape[-1])
        return (y * weight.unsqueeze(-1)).sum(dim=1), balance, load

    def forward(self, x, cos, sin):
        eps = self.c["rms_norm_eps"]
        x = x + self.attention(F.rms_norm(x, x.shape[-1:], self.norm1, eps), cos, sin)
        h = F.rms_norm(x, x.shape[-1:], self.norm2, eps)
        y, balance, load = self.experts(h.view(-1, h.shape[-1]))
        return x + y.view_as(x), balance, load


class Model(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.embed = torch.nn.Parameter(torch.randn(c["vocab_size"], c["hidden_size"]) * 0.3)
        self.layers = torch.nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = torch.nn.Parameter(torch.ones(c["hidden_size"]))
        self.head = torch.nn.Parameter(torch.zeros(c["vocab_size"], c["hidden_size"]))
        d = c["head_dim"]
        freq = c["rope_theta"] ** (-torch.arange(0, d, 2).float() / d)
        angle = torch.arange(c["max_position_embeddings"]).float()[:, None] * torch.cat([freq, freq])
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids):
        """[n][t] ids -> logits [n][t][vocab], mean balance loss (1 is perfect), loads [n_layers][n_experts]."""
        x, balances, loads = F.embedding(ids, self.embed), [], []
        cos, sin = self.cos[:ids.shape[1]], self.sin[:ids.shape[1]]
        for layer in self.layers:
            x, balance, load = layer(x, cos, sin)
            balances.append(balance)
            loads.append(load)
        x = F.rms_norm(x, x.shape[-1:], self.norm, self.c["rms_norm_eps"])
        return F.linear(x, self.head), torch.stack(balances).mean(), torch.stack(loads)


def matrix(*shape, gain=1.0):
    return torch.nn.Parameter(torch.randn(*shape) * gain * shape[-1] ** -0.5)


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


# ---------------------------------------------------------------- optimizer

class Muon(torch.optim.Optimizer):
    """Momentum whose update is replaced by the nearest orthogonal matrix; stacked matrices go one by one."""

    def __init__(self, params, rate):
        super().__init__(params, {"lr": rate})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - MUON_MOMENTUM)
                update = orthogonal(p.grad.lerp(m, MUON_MOMENTUM))
                p.mul_(1 - group["lr"] * MUON_DECAY)
                p.add_(update, alpha=-group["lr"] * max(1.0, p.shape[-2] / p.shape[-1]) ** 0.5)


def orthogonal(g, steps=5):
    """Newton-Schulz iteration towards U V' of the singular value decomposition of g."""
    tall = g.shape[-2] > g.shape[-1]
    x = g.mT if tall else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return x.mT if tall else x


def make_optimizers(model):
    hidden = [p for l in model.layers for p in (l.q, l.k, l.v, l.o, l.w1, l.w2, l.w3)]
    small = [p for l in model.layers for p in (l.gate, l.norm1, l.norm2)] + [model.norm]
    groups = [{"params": [model.embed], "lr": ADAM_RATES["embed"]},
              {"params": [model.head], "lr": ADAM_RATES["head"]},
              {"params": small, "lr": ADAM_RATES["small"]}]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0)
    both = [Muon(hidden, MUON_RATE), adam]
    for optimizer in both:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return both


def rate_factor(step, progress):
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return warm * min(1.0, max(0.0, (1 - progress) / (1 - DECAY_FROM)))


# ---------------------------------------------------------------- training

class Run:
    """Everything a checkpoint has to hold, and the two verbs on it."""

    def __init__(self, args):
        torch.manual_seed(args.seed)
        self.path = os.path.join(args.work, "checkpoint.pt")
        self.model = Model(CONFIG).to(args.device)
        self.optimizers = make_optimizers(self.model)
        self.step, self.seconds, self.tokens = 0, 0.0, 0
        self.windows = {SHORT_CONTEXT: 0, LONG_CONTEXT: 0}
        if os.path.exists(self.path):
            self.load(args.device)

    def load(self, device):
        state = torch.load(self.path, map_location=device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        self.step, self.seconds, self.tokens = state["step"], state["seconds"], state["tokens"]
        self.windows = state["windows"]
        torch.set_rng_state(state["rng"].cpu())

    def save(self):
        state = {"model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers],
                 "step": self.step, "seconds": self.seconds, "tokens": self.tokens, "windows": self.windows,
                 "rng": torch.get_rng_state()}
        torch.save(state, self.path + ".new")
        os.replace(self.path + ".new", self.path)

    def progress(self, args):
        """0 at the start, 1 when the budget is used up."""
        budget = args.steps or args.minutes
        override = os.path.join(args.work, "budget")
        if os.path.exists(override):
            with open(override, encoding="utf-8") as f:
                budget = float(f.read().strip() or budget)
        used = self.step if args.steps else self.seconds / 60
        return min(1.0, used / budget)


def train_step(run, walks, args, progress):
    """One update from --batch tokens, taken --micro at a time.  Returns the loss in nats per token."""
    context = LONG_CONTEXT if progress >= LONG_FROM else SHORT_CONTEXT
    n_micro = max(1, args.batch // args.micro)
    n_windows = max(1, args.micro // context)
    balance_weight = BALANCE_LATE if progress >= DECAY_FROM else BALANCE_EARLY
    total = 0.0
    for _ in range(n_micro):
        ids, targets = walks[context].batch(run.windows[context], n_windows)
        ids, targets = ids.to(args.device), targets.to(args.device)
        logits, balance, _ = run.model(ids)
        loss = F.cross_entropy(logits.view(-1, VOCAB), targets.view(-1))
        ((loss + balance_weight * balance) / n_micro).backward()
        total += loss.item() / n_micro
        run.windows[context] += n_windows
        run.tokens += targets.numel()
    factor = rate_factor(run.step, progress)
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.step()
        optimizer.zero_grad()
    run.step += 1
    return total


@torch.no_grad()
def evaluate(model, tokens, device, window=VALID_WINDOW, max_windows=None):
    """Nats per token over the stream in windows that start with BOS, and the worst max/mean expert load."""
    starts = range(0, len(tokens), window)
    if max_windows:
        starts = starts[::max(1, len(starts) // max_windows)]
    nats, count, loads = 0.0, 0, 0
    for start in starts:
        targets = torch.from_numpy(tokens[start:start + window].astype(np.int64))[None].to(device)
        logits, _, load = model(shift_in_bos(targets))
        nats += F.cross_entropy(logits[0], targets[0], reduction="sum").item()
        count += targets.numel()
        loads = loads + load.float()
    imbalance = (loads.max(dim=1).values / loads.mean(dim=1)).max().item()
    return nats / count, imbalance


def log_row(args, row):
    path = os.path.join(args.work, "log.csv")
    fresh = not os.path.exists(path)
    with open(path, "a", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, fieldnames=list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)
    print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)


def train(run, tokens, valid, args):
    """Steps until the budget is used; every --every minutes a validation loss and a checkpoint."""
    walks = {context: Walk(tokens, context, args.seed) for context in run.windows}
    recent, started, last_save = [], time.monotonic(), time.monotonic()
    request = os.path.join(args.work, "export")
    base_seconds, paused = run.seconds, 0.0
    while (progress := run.progress(args)) < 1:
        recent.append(train_step(run, walks, args, progress))
        run.seconds = base_seconds + time.monotonic() - started - paused
        if run.step % 20 == 0:
            print(f"step {run.step}  {progress:.3f}  loss {np.mean(recent[-20:]):.4f}  "
                  f"{run.tokens / run.seconds:.0f} tokens/s", flush=True)
        if time.monotonic() - last_save < args.every * 60 and run.progress(args) < 1:
            continue
        pause = time.monotonic()
        nats, imbalance = evaluate(run.model, valid, args.device, max_windows=100)
        log_row(args, {"step": run.step, "minutes": round(run.seconds / 60, 2), "tokens": run.tokens,
                       "train": round(float(np.mean(recent)), 4), "valid_sample": round(nats, 4),
                       "imbalance": round(imbalance, 3)})
        run.save()
        if os.path.exists(request):
            os.remove(request)
            export(run.model, args)
        recent, last_save = [], time.monotonic()
        paused += time.monotonic() - pause


# ---------------------------------------------------------------- export and verification

def published_tensors(model):
    """The tensors under the names, and in the layout, of a Mixtral checkpoint on disk."""
    out = {"model.embed_tokens.weight": model.embed, "model.norm.weight": model.norm, "lm_head.weight": model.head}
    for i, layer in enumerate(model.layers):
        at = f"model.layers.{i}."
        out[at + "input_layernorm.weight"] = layer.norm1
        out[at + "post_attention_layernorm.weight"] = layer.norm2
        out[at + "block_sparse_moe.gate.weight"] = layer.gate
        for name in "qkvo":
            out[f"{at}self_attn.{name}_proj.weight"] = getattr(layer, name)
        for e in range(model.c["num_local_experts"]):
            for name in ("w1", "w2", "w3"):
                out[f"{at}block_sparse_moe.experts.{e}.{name}.weight"] = getattr(layer, name)[e]
    return {k: v.detach().to("cpu", torch.bfloat16).contiguous().clone() for k, v in out.items()}


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def export(model, args):
    os.makedirs(args.out, exist_ok=True)
    target = os.path.join(args.out, "model.safetensors")
    save_file(published_tensors(model), target + ".new", metadata={"format": "pt"})
    os.chmod(target + ".new", 0o644)
    os.replace(target + ".new", target)
    write_json(os.path.join(args.out, "config.json"), CONFIG)
    write_json(os.path.join(args.out, "generation_config.json"),
               {"bos_token_id": BOS, "eos_token_id": EOS, "do_sample": True, "temperature": 0.8, "top_p": 0.95})
    with open(os.path.join(args.work, "tokenizer.model"), "rb") as f:
        content = f.read()
    with open(os.path.join(args.out, "tokenizer.model"), "wb") as f:
        f.write(content)
    print(f"exported {os.path.getsize(target)} bytes to {target}", flush=True)


def scores(name, nats, n_tokens, n_bytes, imbalance=None):
    tail = "" if imbalance is None else f"  worst max/mean expert load {imbalance:.3f}"
    print(f"{name}: {nats:.4f} nats/token  perplexity {math.exp(nats):.2f}  "
          f"{nats * n_tokens / n_bytes / math.log(2):.4f} bits/byte{tail}", flush=True)


@torch.no_grad()
def verify(model, valid, valid_bytes, args):
    """Compares the export, loaded by transformers in f32, with this file's network on the same bf16 weights."""
    from transformers import MixtralForCausalLM
    other = MixtralForCausalLM.from_pretrained(args.out, dtype=torch.float32).eval()
    for p in model.parameters():
        p.copy_(p.to(torch.bfloat16).to(p.dtype))
    model = model.cpu()
    targets = torch.from_numpy(valid[:1024].astype(np.int64)).view(2, 512)
    mine, theirs = model(shift_in_bos(targets))[0], other(shift_in_bos(targets)).logits
    print(f"largest difference of {mine.numel()} logits: {(mine - theirs).abs().max():.2e} "
          f"(largest logit {theirs.abs().max():.2f})")
    nats = 0.0
    for start in range(0, len(valid), VALID_WINDOW):
        targets = torch.from_numpy(valid[start:start + VALID_WINDOW].astype(np.int64))[None]
        nats += F.cross_entropy(other(shift_in_bos(targets)).logits[0], targets[0], reduction="sum").item()
    scores(f"transformers, bf16 weights, windows of {VALID_WINDOW}", nats / len(valid), len(valid), valid_bytes)


@torch.no_grad()
def sample(model, tokenizer, prompt, seed, n_tokens=120, temperature=0.8):
    generator = torch.Generator().manual_seed(seed)
    ids = [BOS] + tokenizer.encode(prompt)
    for _ in range(n_tokens):
        logits = model(torch.tensor([ids]))[0][0, -1]
        ids.append(torch.multinomial((logits / temperature).softmax(0), 1, generator=generator).item())
        if ids[-1] == EOS:
            break
    return tokenizer.decode(ids)


def parse_args():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--corpus", required=True, help="training text, .txt or .txt.xz")
    p.add_argument("--valid", required=True, help="validation text")
    p.add_argument("--work", required=True, help="directory for tokens, checkpoints and the log")
    p.add_argument("--out", required=True, help="directory of the exported model")
    p.add_argument("--steps", type=int, default=0, help="length of the run in steps (reproducible)")
    p.add_argument("--minutes", type=float, default=85, help="length of the run in minutes, without --steps")
    p.add_argument("--batch", type=int, default=8192, help="tokens per step")
    p.add_argument("--micro", type=int, default=4096, help="tokens per forward pass")
    p.add_argument("--every", type=float, default=3, help="minutes between checkpoints")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--verify", action="store_true", help="compare the export with transformers")
    return p.parse_args()


def main():
    args = parse_args()
    os.makedirs(args.work, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    tokenizer, tokens, valid, valid_bytes = load_tokens(args)
    print(f"{len(tokens)} training tokens, {len(valid)} validation tokens, "
          f"{valid_bytes / len(valid):.2f} bytes per token", flush=True)
    run = Run(args)
    print(f"{sum(p.numel() for p in run.model.parameters())} parameters, starting at step {run.step}", flush=True)
    train(run, tokens, valid, args)
    export(run.model, args)
    for window in (VALID_WINDOW, LONG_CONTEXT):
        nats, imbalance = evaluate(run.model, valid, args.device, window)
        scores(f"f32 weights, windows of {window}", nats, len(valid), valid_bytes, imbalance)
    if args.verify:
        verify(run.model, valid, valid_bytes, args)
        print(sample(run.model.cpu(), tokenizer, "Once upon a time", args.seed), flush=True)


if __name__ == "__main__":
    main()
