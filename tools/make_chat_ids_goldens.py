#!/usr/bin/env python3
"""Writes which ids transformers makes of whole chats, where text between control tokens begins.

Each fixture is a folder tokenizer-chat-NAME/, NAME being legacy or new, over the pieces of tests/golden/tokenizer-bpe:

    tokenizer.json          as LlamaTokenizer has it with that `legacy`
    tokenizer_config.json   says so for tokenizer.model, which is that of tokenizer-bpe
    cases.json              {"cases":       [{"text": ..., "ids": [...], "decoded": ...}, ...],   by tokenizer.json
                             "plain_cases": [...]}                                                by tokenizer.model

Texts are the conversations of compare_chat_templates.py in two templates, and a few that no template makes; ids of the
first are those of apply_chat_template(tokenize=True). By tokenizer.model with `legacy` is transformers' own way over
SentencePiece; without, LlamaTokenizer's again, which has no other. Versions: tools/requirements.txt.

    python tools/make_chat_ids_goldens.py --out tests/golden
"""

import argparse
import json
import shutil
from pathlib import Path

from compare_chat_templates import CONVERSATIONS
from transformers import LlamaTokenizer
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend, SentencePieceExtractor

TEMPLATES = [  # as Mixtral's, and one whose text goes on right behind its tokens
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ ' [INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
    "{% for m in messages %}{{ bos_token + m.role + '\n' + m.content + eos_token }}{% endfor %}",
]
TEXTS = ["one", " one", "  one", "\u2581one", "one</s>two", "one </s> two", "</s>", "</s> ", "<s></s>\n", " </s>one <unk>x",
         "<s>one two</s>three  four</s>", "日本</s>日本 🙂"]
NAMES = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def ids_of(tokenizer, template, messages):
    ids = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=True, return_dict=False)
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    return {"text": text, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=True)}


def cases(tokenizer):
    chats = [m for m in CONVERSATIONS.values() if m and all(isinstance(x.get("content"), str) for x in m)]
    for template in TEMPLATES:
        for messages in chats:
            yield ids_of(tokenizer, template, messages)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        yield {"text": text, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=True)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("tests/golden"))
    out = parser.parse_args().out
    model = out / "tokenizer-bpe" / "tokenizer.model"
    vocab, _, merges = SentencePieceExtractor(str(model)).extract({})
    for name, legacy in (("legacy", True), ("new", False)):
        folder = out / f"tokenizer-chat-{name}"
        folder.mkdir(exist_ok=True)
        fast = LlamaTokenizer(vocab=vocab, merges=merges, legacy=legacy, **NAMES)
        fast.backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        slow = SentencePieceBackend(vocab_file=str(model), legacy=True, **NAMES) if legacy else fast
        write = {"cases": list(cases(fast)), "plain_cases": list(cases(slow))}
        (folder / "cases.json").write_text(json.dumps(write, ensure_ascii=True, indent=0) + "\n", encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps({"legacy": legacy, **NAMES}) + "\n", encoding="utf-8")
        shutil.copyfile(model, folder / "tokenizer.model")


if __name__ == "__main__":
    main()
