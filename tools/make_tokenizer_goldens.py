#!/usr/bin/env python3
"""Writes the small SentencePiece models of tests/golden and what the sentencepiece package makes of many texts.

Each fixture is a folder tokenizer-NAME/ with tokenizer.model and cases.json:

    {"cases":        [{"text": ..., "ids": [...], "decoded": ...}, ...],    encode, then decode those ids
     "decode_cases": [{"ids": [...], "decoded": ...}, ...],                 ids as a model may sample them
     "pieces":       [{"id": ..., "piece": ..., "type": ...}, ...]}         the vocabulary, in order

No BOS or EOS is added to `ids`. `decoded` may differ from `text`: bytes that are not UTF-8 become U+FFFD, and a
model with a dummy prefix drops one leading space.

As in the tokenizer of Mixtral, text is not normalised, spaces are kept, digits are single pieces and unknown
characters fall back to bytes. The models are trained on sentences made below, with one thread, so two runs write
the same bytes (versions: tools/requirements.txt).

    python tools/make_tokenizer_goldens.py --out tests/golden
"""

import argparse
import io
import json
import random
from pathlib import Path

import sentencepiece

N_SENTENCES = 400

FIXTURES = {
    "bpe": dict(model_type="bpe", vocab_size=500, add_dummy_prefix=True),
    "unigram": dict(model_type="unigram", vocab_size=480, add_dummy_prefix=False),
    "bpe-symbols": dict(model_type="bpe", vocab_size=420, add_dummy_prefix=False,
                        user_defined_symbols=["[INST]", "[/INST]", "<|im|>", "<|im|>user", "▁▁"]),
}

# ---- the training text ---------------------------------------------------------------------------------------

SUBJECTS = """the server|a page of keys|every expert|the router|one request|the cache|a token|the scheduler
the old lighthouse|my neighbour|a small river|the first reader|nobody|the committee|an honest answer""".replace(
    "\n", "|").split("|")
VERBS = """keeps|evicts|forwards|measures|remembers|compresses|returns|waits for|writes down|believes|crosses
was sending|has counted|will place|could not find""".replace("\n", "|").split("|")
OBJECTS = """the attention weights|twelve pages|a shorter sentence|the hidden state|the sliding window|its budget
the morning light|a wooden bridge|the answer to a question|two letters|everything|the values of a layer
an unexpected result|the end of the sequence|what the model said""".replace("\n", "|").split("|")
PLACES = """in memory|on the second device|before noon|after the prompt|without a copy|for the next step|at home
between the layers|under load|near the station|in 1987|within 42 ms|as usual""".replace("\n", "|").split("|")
FOREIGN = ["Der Schlüssel liegt auf dem Tisch, natürlich.", "L'été dernier, nous étions à la plage.",
           "El niño comió una manzana mañana.", "Привет, как дела? Всё хорошо.", "今日は良い天気です。", "你好,世界。",
           "Καλημέρα κόσμε.", "Zażółć gęślą jaźń."]
CODE = ["for (int i = 0; i < n; i++) {", "    return x + 1;", "def f(x):\n        return x", "\tif (err != ERR_OK)",
        '{"model": "mixtral", "max_tokens": 64}', "#include <stdint.h>"]


def training_sentences():
    """About N_SENTENCES lines: English put together at random, every tenth line foreign or code."""
    rng = random.Random(7)
    sentences = []
    for i in range(N_SENTENCES):
        if i % 10 == 0:
            sentences.append(rng.choice(FOREIGN))
        elif i % 10 == 5:
            sentences.append(rng.choice(CODE))
        else:
            words = [rng.choice(part) for part in (SUBJECTS, VERBS, OBJECTS, PLACES)]
            sentence = " ".join(words)
            sentences.append(sentence[0].upper() + sentence[1:] + rng.choice([".", ".", "!", "?", ", and so on."]))
    return sentences


def train(options):
    """The bytes of a tokenizer.model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(training_sentences()), model_writer=model, num_threads=1, minloglevel=2,
        byte_fallback=True, character_coverage=0.995, normalization_rule_name="identity",
        remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, hard_vocab_limit=False, **options)
    return model.getvalue()


# ---- the texts -----------------------------------------------------------------------------------------------

PLAIN = ["", "a", "A", "the", "The server keeps the attention weights in memory.", "Hello, world!", "hello",
         "Hello Hello Hello", "theserverkeeps", "THE SERVER KEEPS", "antidisestablishmentarianism", "x", "zzzzzz",
         "don't can't won't it's", "1", "42", "1234567890", "3.14159", "1,000,000", "-17", "0x1F", "1e-5",
         "a1b2c3", "2026-01-31", "!@#$%^&*()_+-=[]{}|;':\",./<>?`~\\", "...", "?!?!", "user@example.com",
         "https://example.com/a?b=c&d=e#f", "C:\\path\\file.txt", "snake_case_name", "camelCaseName",
         "the  end of the sequence", "evicts evicted evicting"]
SPACES = [" ", "  ", "   ", "    ", "     ", " " * 33, " a", "a ", " a ", "  a", "a  ", "  a  b  ", "a b", "a  b",
          "a   b", "a    b", "a         b", "\n", "\n\n", "\n\n\n", "\t", "\t\t", " \n", "\n ", " \n ", "a\n", "\na",
          "a\nb", "a\n\nb", "a\tb", "\ta", "a\r\nb", "\r", "line one\nline two\n\n  indented\n",
          "\tif (err != ERR_OK)\n\t\treturn err;\n", "a\u00a0b", "a\u2003b", "a\u3000b", "a\u200bb", "a\u2028b",
          "\u0085", "\u202f"]
UNICODE = ["é", "e\u0301", "naïve café", "nai\u0308ve cafe\u0301", "Å Å A\u030a", "Größe Straße", "¿Qué tal?",
           "Привет, как дела?", "Καλημέρα κόσμε", "今日は良い天気です。", "你好,世界。", "你好，世界！", "한국어 문장",
           "\u1112\u1161\u11ab", "ｆｕｌｌｗｉｄｔｈ １２３", "ﬁ ligature ½ ² ™ ℃", "שלום עולם", "مرحبا بالعالم",
           "abc שלום def", "\u202eabc\u202c", "\u200fa\u200e", "हिन्दी", "ภาษาไทย", "z\u0300\u0301\u0302\u0303\u0304",
           "\u0301", "😀", "😀😀", "a😀b", "👩‍👩‍👧‍👦", "👍🏽", "🇩🇪🇫🇷", "❤️", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𠜎𠜱", "\U0010ffff", "\ue000", "\ufeff",
           "\ufeffa", "\ufffd", "a\ufffdb", "\ufffe", "\u007f", "\u0080", "\u07ff\u0800", "\ud7ff", "\uffff",
           "\U00010000"]
CONTROLS = ["\x00", "a\x00b", "\x01\x02\x03", "\x07\x08", "\x0b\x0c", "\x1b[31mred\x1b[0m", "a\x7fb", "\x1f"]
LITERALS = ["<s>", "</s>", "<unk>", "<s>hello</s>", " <s> ", "<0x41>", "<0x0A>", "a<0x41>b", "<0xFF>", "▁", "▁▁",
            "▁a", "a▁b", " ▁ ", "<s", "s>", "[INST] hello [/INST]", "[INST][INST]", "[INST", "<|im|>user",
            "<|im|>use", "<|im|>", "a<|im|>b", "x [INST]y", " ⁇ ", "<pad>"]


def texts():
    rng = random.Random(11)
    long_text = " ".join(rng.choice(training_sentences()) for _ in range(8))
    alphabet = "abc  \n\t.,é漢😀\x01▁<s>0"
    mixed = ["".join(rng.choice(alphabet) for _ in range(n)) for n in (5, 12, 40, 60)]
    return PLAIN + SPACES + UNICODE + CONTROLS + LITERALS + mixed + [long_text, "ab" * 60, "a" * 100, "漢" * 20]


def byte_ids(tokenizer, data):
    return [tokenizer.piece_to_id(f"<0x{byte:02X}>") for byte in data]


def broken_bytes():
    """UTF-8 cut short, overlong, out of range; and some that is whole."""
    emoji = "😀".encode("utf-8")
    return [b"A", b"\n", b" ", b" a", b"\x00", emoji, emoji[:1], emoji[:2], emoji[:3], emoji[1:], emoji + emoji[:2],
            b"\x80", b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"a\xe2\x82z",
            b"\xe2\x82\xac\xe2\x82", b"\xf0\x9f\x98\xe2\x82\xac"]


def decode_id_lists(tokenizer):
    """Ids as a model may sample them: broken UTF-8, control pieces in between, lone pieces."""
    hello = tokenizer.encode("hello world")
    emoji = byte_ids(tokenizer, "😀".encode("utf-8"))
    lists = [[], [0], [1], [2], [1, 2], [0, 0], [1] + hello + [2], hello + [0] + hello, hello + [1] + hello,
             emoji[:2] + hello, hello + emoji[:3], emoji[:2] + [1] + emoji[2:], [1] + emoji, hello + emoji + hello]
    lists += [byte_ids(tokenizer, data) for data in broken_bytes()]
    for text in ("▁", "▁the", "▁▁", "the", "s"):
        piece_id = tokenizer.piece_to_id(text)
        if piece_id != tokenizer.unk_id():
            lists += [[piece_id], [piece_id] * 2, [1, piece_id], [1, piece_id, 2, piece_id], hello + [piece_id]]
    return lists


# ---- the fixtures --------------------------------------------------------------------------------------------


def piece_type(tokenizer, piece_id, user_defined):
    if tokenizer.is_unknown(piece_id):
        return "unknown"
    if tokenizer.is_control(piece_id):
        return "control"
    if tokenizer.is_byte(piece_id):
        return "byte"
    if tokenizer.is_unused(piece_id):
        return "unused"
    return "user_defined" if tokenizer.id_to_piece(piece_id) in user_defined else "normal"


def make_cases(tokenizer, user_defined):
    cases = []
    for text in texts():
        ids = tokenizer.encode(text)
        cases.append({"text": text, "ids": ids, "decoded": tokenizer.decode(ids)})
    decode_cases = [{"ids": ids, "decoded": tokenizer.decode(ids)} for ids in decode_id_lists(tokenizer)]
    pieces = [{"id": i, "piece": tokenizer.id_to_piece(i), "type": piece_type(tokenizer, i, user_defined)}
              for i in range(tokenizer.get_piece_size())]
    return {"cases": cases, "decode_cases": decode_cases, "pieces": pieces}


def dump(cases):
    """JSON with one entry to a line."""
    sections = []
    for key, entries in cases.items():
        lines = ",\n".join(json.dumps(entry, ensure_ascii=False, separators=(",", ":")) for entry in entries)
        sections.append(f'"{key}": [\n{lines}\n]')
    return "{\n" + ",\n".join(sections) + "\n}\n"


def write_fixture(folder, options):
    model = train(options)
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
    if tokenizer.decode(byte_ids(tokenizer, "a€".encode("utf-8"))).strip() != "a€":
        raise RuntimeError(f"{folder.name}: the byte pieces are missing")
    cases = make_cases(tokenizer, options.get("user_defined_symbols", []))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "cases.json").write_text(dump(cases), encoding="utf-8", newline="\n")
    print(f"{folder.name}: {len(cases['pieces'])} pieces, {len(model)} bytes, {len(cases['cases'])} texts, "
          f"{len(cases['decode_cases'])} id lists")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("tests/golden"), help="folder of the fixtures")
    args = parser.parse_args()
    for name, options in FIXTURES.items():
        write_fixture(args.out / f"tokenizer-{name}", options)


if __name__ == "__main__":
    main()
