#!/usr/bin/env python3
"""Trains the default model, models/storyteller: a small Mixtral with its own tokenizer.

    python tools/train_default_model.py --corpus train.txt.xz --valid valid.txt.xz \\
        --work /var/tmp/storyteller --out models/storyteller --minutes 110 --verify

It learns two things from two kinds of text: English from the corpus, and to look facts up far back in its context
from passages that lookup_text.py writes. The stages of the run are the rows of STAGES: passages are short and dense at
first, until looking back is learned, and grow to the whole context. Of a passage only the answers, and real text between
its facts, are trained on.

Each part is kept in the work directory, so that a second start goes on where the first one stopped:

    corpus  ->  tokenizer.model  ->  train.npy, valid.npy  ->  checkpoint.pt, log.csv  ->  --out

The schedule is warm-up, constant rate, linear decay, and depends only on the progress of the run, from 0 to 1.
With --steps progress is counted in steps and the run is reproducible from its seed; with --minutes it is
measured in training time.  A file `budget` in the work directory (a number in the same unit) changes the end
of a run under way; a file `export` asks for an export of the present weights.  --init starts from the weights of an
exported model instead of random ones.
"""
import argparse
import csv
import functools
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

import lookup_text
import train_curve
from storyteller_network import (BOS, CONFIG, EOS, VOCAB, Model, export, make_optimizers, read_published,
                                 start_looking_back)

BOOK_LINE = "<|book|>"
SAMPLE_CHARS = 10_000_000          # text shown to the tokenizer's trainer
VALID_WINDOW = 512                 # tokens per window when perplexity is measured

# from this progress on: tokens of a window, tokens of a step, share of passages, whether they are packed
STAGES = (
    (0.00, 256, 4096, 0.50, True),
    (0.10, 256, 8192, 0.50, False),
    (0.25, 256, 8192, 0.25, False),
    (0.35, 512, 8192, 0.25, False),
    (0.50, 1024, 8192, 0.50, False),
    (0.64, 2048, 8192, 0.50, False),
    (0.70, 2048, 8192, 0.75, False),
)
MICRO = 2048                       # tokens of a forward pass: one window of the longest stage
FACT_TOKENS = 48                   # of a passage, for each fact at most
DECAY_FROM = 0.38                  # progress from which the rate falls to zero
BALANCE_EARLY, BALANCE_LATE = 0.02, 0.05   # weight of the balance loss, before and after DECAY_FROM
ANSWERS_WEIGHT = 2                 # of the mean over answers, beside the mean over text
WARMUP_STEPS = 30
HELD_STEPS = 180                   # first steps, in which attention keeps looking where its start has set it to look


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
        """Targets [n_windows][context]."""
        rows = [self.window(i) for i in range(position, position + n_windows)]
        return torch.from_numpy(np.stack(rows).astype(np.int64))


def shift_in_bos(targets):
    return torch.cat([torch.full_like(targets[:, :1], BOS), targets[:, :-1]], dim=1)


class Passages:
    """Look-up windows by number: each is a function of (seed, context, number)."""

    def __init__(self, tokenizer, tokens, context, packed, seed):
        self.encode_cached = functools.lru_cache(200_000)(tokenizer.encode)
        self.tokens, self.context, self.packed, self.seed = tokens, context, packed, seed

    def encode(self, text):
        return list(self.encode_cached(text))

    def window(self, number, n_facts=None):
        rng = np.random.default_rng((self.seed, self.context, int(self.packed), number))

        def real_text(n):
            start = int(rng.integers(len(self.tokens) - n))
            return self.tokens[start:start + n].tolist()

        if self.packed:
            return lookup_text.make_packed(rng, self.context, self.encode, real_text)
        n_facts = n_facts or int(rng.integers(1, self.context // FACT_TOKENS + 1))
        return lookup_text.make_window(rng, self.context, self.encode, real_text, n_facts)

    def batch(self, position, n_windows):
        """Targets and weights [n_windows][context], and the places of the answers."""
        rows = [self.window(i) for i in range(position, position + n_windows)]
        return torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows]), [r[2] for r in rows]


# ---------------------------------------------------------------- training

def stage_of(progress):
    return max(i for i, stage in enumerate(STAGES) if progress >= stage[0])


def rate_factor(step, progress):
    held = step < HELD_STEPS
    warm = min(1.0, (step + 1) / WARMUP_STEPS if held else (step + 1 - HELD_STEPS) / (2 * WARMUP_STEPS))
    return warm * min(1.0, max(0.0, (1 - progress) / (1 - DECAY_FROM)))


class Run:
    """Everything a checkpoint has to hold, and the two verbs on it."""

    def __init__(self, args):
        torch.manual_seed(args.seed)
        self.path = os.path.join(args.work, "checkpoint.pt")
        self.model = Model(CONFIG)
        if args.init:
            read_published(self.model, args.init)
        start_looking_back(self.model)
        self.model.to(args.device)
        self.optimizers = make_optimizers(self.model)
        self.step, self.seconds, self.tokens = 0, 0.0, 0
        self.windows = [[0, 0] for _ in STAGES]         # text windows and passages used, by stage
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


class Sources:
    """Text windows and passages of every stage."""

    def __init__(self, tokenizer, tokens, seed):
        self.tokenizer = tokenizer
        seeds = [100 * seed + i for i in range(len(STAGES))]
        self.walks = [Walk(tokens, stage[1], s) for stage, s in zip(STAGES, seeds)]
        self.passages = [Passages(tokenizer, tokens, stage[1], stage[4], s) for stage, s in zip(STAGES, seeds)]


def text_loss(model, ids):
    logits, balance, _ = model(shift_in_bos(ids))
    return F.cross_entropy(logits.flatten(0, 1), ids.flatten()), balance


def passage_loss(model, ids, weights):
    """Weighted sum of the mean over the answers and half the mean over real text; other rows never reach the head."""
    rows = weights > 0
    logits, balance, _ = model(shift_in_bos(ids), rows)
    nats, kinds = F.cross_entropy(logits, ids[rows], reduction="none"), weights[rows]
    answers, real = nats[kinds == lookup_text.ANSWER], nats[kinds == lookup_text.FILLER]
    loss = answers.mean() if len(answers) else nats.sum() * 0
    return ANSWERS_WEIGHT * loss + (0.5 * real.mean() if len(real) else 0), loss.item(), balance


def train_step(run, sources, args, progress):
    """One update.  Returns the mean loss of the text and of the answers, in nats per token."""
    stage = stage_of(progress)
    _, context, step_tokens, share, _ = STAGES[stage]
    balance_weight = BALANCE_LATE if progress >= DECAY_FROM else BALANCE_EARLY
    n_micro, n_windows = step_tokens // MICRO, MICRO // context
    n_passages = round(n_micro * share)
    used, means = run.windows[stage], [0.0, 0.0]
    for micro in range(n_micro):
        kind = int(micro < n_passages)
        if kind:
            ids, weights, _ = sources.passages[stage].batch(used[1], n_windows)
            loss, mean, balance = passage_loss(run.model, ids.to(args.device), weights.to(args.device))
        else:
            loss, balance = text_loss(run.model, sources.walks[stage].batch(used[0], n_windows).to(args.device))
            mean = loss.item()
        ((loss + balance_weight * balance) / n_micro).backward()
        means[kind] += mean / (n_passages if kind else n_micro - n_passages)
        used[kind] += n_windows
        run.tokens += MICRO
    if run.step < HELD_STEPS:
        for parameter in run.model.held():
            parameter.grad = None
    factor = rate_factor(run.step, progress)
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.step()
        optimizer.zero_grad()
    run.step += 1
    return means


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


@torch.no_grad()
def answer_share(model, passages, n_windows, device):
    """{kind: share of answers whose every token is the likeliest one}, over fresh passages."""
    right, total = {}, {}
    for i in range(n_windows):
        ids, _, spans = passages.window(i, passages.context // 64)
        ids = torch.tensor([ids])
        best = model(shift_in_bos(ids).to(device))[0][0].argmax(-1).cpu()
        for kind, first, end in spans:
            total[kind] = total.get(kind, 0) + 1
            right[kind] = right.get(kind, 0) + bool((best[first:end] == ids[0, first:end]).all())
    return {kind: right[kind] / total[kind] for kind in sorted(total)}


def log_row(args, row):
    path = os.path.join(args.work, "log.csv")
    fresh = not os.path.exists(path)
    with open(path, "a", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, fieldnames=list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)
    print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)


LOGGED_KINDS = ("number", "grid", "chain", "now", "count")


def report(run, sources, valid, recent, args):
    stage = stage_of(run.progress(args))
    nats, imbalance = evaluate(run.model, valid, args.device, max_windows=80)
    fresh = Passages(sources.tokenizer, valid, STAGES[stage][1], False, args.seed + 10**6)
    shares = answer_share(run.model, fresh, 4096 * 3 // STAGES[stage][1], args.device)
    text, answers = np.mean(recent, axis=0) if recent else (math.nan, math.nan)
    row = {"step": run.step, "minutes": round(run.seconds / 60, 2), "tokens": run.tokens,
           "context": STAGES[stage][1], "train": round(float(text), 4), "answers": round(float(answers), 4),
           "valid_sample": round(nats, 4), "imbalance": round(imbalance, 3)}
    log_row(args, row | {kind: round(shares.get(kind, math.nan), 3) for kind in LOGGED_KINDS})


def train(run, sources, valid, args):
    """Steps until the budget is used; every --every minutes a line of the log and a checkpoint."""
    recent, started, last_save = [], time.monotonic(), time.monotonic()
    request = os.path.join(args.work, "export")
    base_seconds, paused = run.seconds, 0.0
    while (progress := run.progress(args)) < 1:
        recent.append(train_step(run, sources, args, progress))
        run.seconds = base_seconds + time.monotonic() - started - paused
        if run.step % 20 == 0:
            text, answers = np.mean(recent[-20:], axis=0)
            print(f"step {run.step}  {progress:.3f}  text {text:.4f}  answers {answers:.4f}  "
                  f"{run.tokens / run.seconds:.0f} tokens/s", flush=True)
        if time.monotonic() - last_save < args.every * 60 and run.progress(args) < 1:
            continue
        pause = time.monotonic()
        report(run, sources, valid, recent, args)
        run.save()
        if os.path.exists(request):
            os.remove(request)
            export(run.model, args.out, os.path.join(args.work, "tokenizer.model"))
        recent, last_save = [], time.monotonic()
        paused += time.monotonic() - pause


# ---------------------------------------------------------------- scores of what was written

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
    p.add_argument("--minutes", type=float, default=110, help="length of the run in minutes, without --steps")
    p.add_argument("--init", help="directory of an exported model of these shapes to start from")
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
    train(run, Sources(tokenizer, tokens, args.seed), valid, args)
    export(run.model, args.out, os.path.join(args.work, "tokenizer.model"))
    train_curve.draw(os.path.join(args.work, "log.csv"), os.path.join(args.out, "curve.svg"))
    for window in (VALID_WINDOW, CONFIG["max_position_embeddings"]):
        nats, imbalance = evaluate(run.model, valid, args.device, window)
        scores(f"f32 weights, windows of {window}", nats, len(valid), valid_bytes, imbalance)
    if args.verify:
        verify(run.model, valid, valid_bytes, args)
        print(sample(run.model.cpu(), tokenizer, "Once upon a time", args.seed), flush=True)


if __name__ == "__main__":
    main()
