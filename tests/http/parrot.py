"""A model that says what a test wants: the default model's weights, whose tokens are spelled anew.

What the model samples from BOS with a seed is a list of ids, and ids mean what the tokenizer says. So the first ids
that it draws, as long as none repeats, are given the pieces of the wanted text; the one behind them is the end token.
"""

import json

from server import ROOT

MODEL = ROOT / "models/storyteller"
BOS, EOS = 1, 2
DRAWS = {"temperature": 2, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1}
N_DRAWN = 160


def draw(server):
    """(seed, ids): of a few seeds the one after whose many ids none has come twice."""
    best = (0, [])
    for seed in range(8):
        reply = server.complete([BOS], seed=seed, max_tokens=N_DRAWN, ignore_eos=True, return_token_ids=True, **DRAWS)
        ids = reply["choices"][0]["token_ids"]
        n = next((i for i in range(len(ids)) if ids[i] in ids[:i] or ids[i] <= EOS), len(ids))
        if n > len(best[1]):
            best = (seed, ids[:n])
    return best


def byte_letters():
    """The character by which tokenizer.json spells each byte (GPT-2's table)."""
    shown = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in shown else chr(next(others)) for b in range(256)]


def cut(text, special, n_letters):
    """Pieces that make the text, all different: words of `special`, and else n_letters letters or a few more."""
    pieces, at = [], 0
    while at < len(text):
        n = next((len(word) for word in special if text.startswith(word, at)), 0)
        if n == 0:
            end = min([text.find(word, at) for word in special if word in text[at:]] + [len(text)])
            n = min(n_letters, end - at)
            while text[at:at + n] in pieces and at + n < end:
                n += 1
        pieces.append(text[at:at + n])
        at += n
        while pieces[-1] in pieces[:-1] or len(pieces[-1]) < n_letters and at == len(text) and len(pieces) > 1 and \
                pieces[-1] not in special and pieces[-2] not in special:
            pieces[-2:] = [pieces[-2] + pieces[-1]]
    return pieces


def make_model(folder, draws, text, special=()):
    """Writes the model's folder; what a request must say to hear `text`. Words of `special` are special tokens."""
    seed, ids = draws
    for file in ("model.safetensors", "config.json"):
        (folder / file).symlink_to(MODEL / file)
    letters = byte_letters()
    pieces = next(found for found in (cut(text, special, n) for n in range(1, 9)) if len(found) < len(ids))
    assert "".join(pieces) == text and len(set(pieces)) == len(pieces)
    special = (*special, "<|end|>")
    spelled = dict(zip(ids, [*pieces, "<|end|>"]))
    n_vocab = json.loads((MODEL / "config.json").read_text())["vocab_size"]
    vocab = {"<s>": BOS, "</s>": EOS}
    for i in set(range(n_vocab)) - {BOS, EOS}:
        piece = spelled.get(i, f"filler {i}")
        vocab[piece if piece in special else "".join(letters[b] for b in piece.encode())] = i
    added = [{"id": vocab[name], "content": name, "special": True, "single_word": False, "lstrip": False,
              "rstrip": False, "normalized": False} for name in ("<s>", "</s>", *special)]
    (folder / "tokenizer.json").write_text(json.dumps({
        "added_tokens": added, "normalizer": None, "post_processor": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": []}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "bos_token": "<s>", "eos_token": "<|end|>",
        "chat_template": "{{ bos_token }}{% if tools is none %}{% endif %}"}))
    return {"seed": seed, **DRAWS}
