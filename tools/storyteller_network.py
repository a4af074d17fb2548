"""The network of tools/train_default_model.py: a Mixtral, its optimizer and its export.

Written out here instead of being taken from transformers, to have the balance loss, the loads and the optimizer's
stacked matrices at hand; tokens are sorted by expert, one product per expert.
"""
import json
import os

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

BOS, EOS = 1, 2
VOCAB = 4096

CONFIG = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
    "vocab_size": VOCAB, "hidden_size": 256, "intermediate_size": 192, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    "num_local_experts": 8, "num_experts_per_tok": 2,
    "max_position_embeddings": 2048, "rope_theta": 1000000.0, "sliding_window": None,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "attention_dropout": 0.0, "initializer_range": 0.02,
    "router_aux_loss_coef": 0.05, "router_jitter_noise": 0.0, "output_router_logits": False,
    "tie_word_embeddings": False, "use_cache": True,
    "bos_token_id": BOS, "eos_token_id": EOS, "torch_dtype": "bfloat16",
}

MUON_RATE, MUON_MOMENTUM, MUON_DECAY = 0.02, 0.95, 0.05
LOOKS_RATE = 0.006                  # of the matrices that look back: a circuit of two layers breaks in large steps
ADAM_RATES = {"embed": 4e-3, "head": 3e-3, "small": 3e-3}


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

    def looks(self):
        """The matrices that start_looking_back has set."""
        first = self.layers[0]
        matching = [self.layers[i] for i in sorted({i for i, _, _ in LOOKS})]
        return [first.q, first.k, first.v, first.o, *(p for layer in matching for p in (layer.q, layer.k))]

    def held(self):
        """The looks and the norms before them. Until there is something to copy, gradients of these are noise, which Muon
        would make full steps of."""
        return [*self.looks(), *(layer.norm1 for layer in self.layers)]

    def forward(self, ids, rows=None):
        """[n][t] ids -> logits [n][t][vocab], mean balance loss (1 is perfect), loads [n_layers][n_experts].

        With rows, a mask [n][t], logits [n_rows][vocab] of these alone."""
        x, balances, loads = F.embedding(ids, self.embed), [], []
        cos, sin = self.cos[:ids.shape[1]], self.sin[:ids.shape[1]]
        for layer in self.layers:
            x, balance, load = layer(x, cos, sin)
            balances.append(balance)
            loads.append(load)
        x = F.rms_norm(x, x.shape[-1:], self.norm, self.c["rms_norm_eps"])
        if rows is not None:
            x = x[rows]
        return F.linear(x, self.head), torch.stack(balances).mean(), torch.stack(loads)


def matrix(*shape, gain=1.0):
    return torch.nn.Parameter(torch.randn(*shape) * gain * shape[-1] ** -0.5)


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


# ---------------------------------------------------------------- a start that can look back

LOOK_CHANNEL = 0                        # of the embedding: the same in every token, so that a query can ask for a place
# (layer, key/value head, n): matches the token n before the query with the token n + 1 before the key; n < 4
LOOKS = ((1, 0, 2), (1, 1, 0), (2, 0, 3), (2, 1, 1))
LOOK_GAIN, LOOK_SHARE = 2.5, 4.0        # of the matching products; of what layer 0 writes, beside the embedding
UNROTATED_TOKENS = 2000                 # channels that rotate less than 1 radian over this distance compare contents


def token_codes(embed, n):
    """[n][dim] that maps normed embeddings to codes of about unit variance and little correlation."""
    e = F.rms_norm(embed, embed.shape[-1:])
    e = e - e.mean(dim=0)
    values, vectors = torch.linalg.eigh(e.T @ e / len(e))
    keep = values > values.mean() / 20
    basis = vectors[:, keep] / values[keep].sqrt()
    return torch.linalg.qr(torch.randn(basis.shape[1], n))[0].T @ basis.T


@torch.no_grad()
def start_looking_back(model):
    """Sets the attention of a fresh or text-trained model so that look-up is learned in minutes.

    Heads that copy what once followed the present tokens (induction heads, Olsson et al., arXiv 2209.11895) need two
    layers to agree before either is of use, so gradients find them late. The start gives a rough draft of both: the four
    heads of layer 0 look one to four tokens back and write a code of what they see, each to a subspace of its own; the
    heads of LOOKS compare such codes. All of it is trained further like any weight."""
    c, d, heads = model.c, model.c["head_dim"], model.c["num_attention_heads"]
    dim, kv_heads = c["hidden_size"], c["num_key_value_heads"]
    freq = c["rope_theta"] ** (-torch.arange(0, d, 2).float() / d)
    first = model.layers[0]
    rms = model.embed[:, 1:].pow(2).mean().sqrt()
    model.embed[:, LOOK_CHANNEL] = 4 * rms
    first.norm1.fill_(1.0)
    sharp = (freq > 0.1).float() * (8 / (freq > 0.1).sum()) ** 0.5
    sharp = torch.cat([sharp, sharp])
    for w in (first.q, first.k):
        w.normal_().mul_(0.3 / dim ** 0.5)
    for h in range(kv_heads):
        first.k[h * d:(h + 1) * d, LOOK_CHANNEL] = 1.2 * sharp
    for h in range(heads):
        angle = -(h + 1) * torch.cat([freq, freq])
        first.q[h * d:(h + 1) * d, LOOK_CHANNEL] = 1.2 * rotate(sharp, angle.cos(), angle.sin())
    still = torch.nonzero(freq < 1 / UNROTATED_TOKENS).flatten()
    rows = torch.cat([still, still + d // 2])
    codes = token_codes(model.embed, d)
    codes[:, LOOK_CHANNEL] = 0
    write = torch.linalg.qr(torch.randn(dim, heads * d))[0]
    first.v.copy_(codes.repeat(kv_heads, 1))
    first.o.copy_(write * LOOK_SHARE * rms)
    for i, kv, n in LOOKS:
        layer = model.layers[i]
        layer.norm1.fill_(1.0)

        def reader(back):
            """[len(rows)][dim]: the code of the token so many places back."""
            read = codes[:len(rows)] if back == 0 else write[:, (back - 1) * d:][:, :len(rows)].T
            w = torch.randn(d, dim) * 0.2 / dim ** 0.5
            w[rows] = LOOK_GAIN * read
            w[:, LOOK_CHANNEL] = 0
            return w

        layer.k[kv * d:(kv + 1) * d] = reader(n + 1)
        group = heads // kv_heads
        for h in range(kv * group, (kv + 1) * group):
            layer.q[h * d:(h + 1) * d] = reader(n)


# ---------------------------------------------------------------- optimizer

class Muon(torch.optim.Optimizer):
    """Momentum whose update is replaced by the nearest orthogonal matrix; stacked matrices go one by one."""

    def __init__(self, groups):
        super().__init__(groups, {"lr": MUON_RATE})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
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
    looks = model.looks()
    others = [p for l in model.layers for p in (l.q, l.k, l.v, l.o, l.w1, l.w2, l.w3) if all(p is not x for x in looks)]
    small = [p for l in model.layers for p in (l.gate, l.norm1, l.norm2)] + [model.norm]
    groups = [{"params": [model.embed], "lr": ADAM_RATES["embed"]},
              {"params": [model.head], "lr": ADAM_RATES["head"]},
              {"params": small, "lr": ADAM_RATES["small"]}]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0)
    model.embed.register_hook(without_look_channel)
    both = [Muon([{"params": others, "lr": MUON_RATE}, {"params": looks, "lr": LOOKS_RATE}]), adam]
    for optimizer in both:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return both


def without_look_channel(gradient):
    """The channel that is the same in every token stays so."""
    gradient = gradient.clone()
    gradient[:, LOOK_CHANNEL] = 0
    return gradient


# ---------------------------------------------------------------- on disk

def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def published_places(model):
    """(name, tensor) under the names, and in the layout, of a Mixtral checkpoint on disk."""
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
    return out.items()


def published_tensors(model):
    return {k: v.detach().to("cpu", torch.bfloat16).contiguous().clone() for k, v in published_places(model)}


def read_published(model, directory):
    """The weights of an exported model, whatever its rope_theta, into `model`."""
    with safe_open(os.path.join(directory, "model.safetensors"), "pt") as f:
        names = {name: f.get_tensor(name).float() for name in f.keys()}
    with torch.no_grad():
        for name, tensor in published_places(model):
            tensor.copy_(names[name])


def export(model, directory, tokenizer_file):
    os.makedirs(directory, exist_ok=True)
    target = os.path.join(directory, "model.safetensors")
    save_file(published_tensors(model), target + ".new", metadata={"format": "pt"})
    os.chmod(target + ".new", 0o644)
    os.replace(target + ".new", target)
    write_json(os.path.join(directory, "config.json"), CONFIG)
    write_json(os.path.join(directory, "generation_config.json"),
               {"bos_token_id": BOS, "eos_token_id": EOS, "do_sample": True, "temperature": 0.8, "top_p": 0.95})
    with open(tokenizer_file, "rb") as f:
        content = f.read()
    with open(os.path.join(directory, "tokenizer.model"), "wb") as f:
        f.write(content)
    print(f"exported {os.path.getsize(target)} bytes to {target}", flush=True)
