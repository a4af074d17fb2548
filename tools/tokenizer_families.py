"""Small tokenizers with the pre-tokenisers, normalisers and decoders of the families that we serve.

Each is trained here on a few hundred sentences; what is real is how text is cut around the merges: the patterns are
those of the released tokenizer.json files."""

import json
import string

from make_tokenizer_goldens import training_sentences
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
O200K_END = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + O200K_END,
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + O200K_END,
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
# Some of these characters do not survive a copy that normalises, so most are spelled by number.
DEEPSEEK2_LETTERS = (
    r"\s?[A-Za-z" "\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+")
DEEPSEEK2 = [r"[\r\n]", DEEPSEEK2_LETTERS, r"\s?[!-/:-~" "\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
             r"\s+$", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"]
DEEPSEEK3 = [r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
             r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
             r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"]

VOCAB = 700
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]


def few_characters():
    """The training text without rare characters: what they are is left to bytes or the unknown token. The trainer's own
    limit_alphabet breaks ties in another way in every run."""
    allowed = set(string.ascii_letters + "012456789 .,!?(){}=+;<>_\"éñüйа今日") - set("HQq")
    return ["".join(c for c in line if c in allowed) for line in training_sentences()]


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def raw_bytes(use_regex=False, add_prefix_space=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)


def special(*names, **options):
    return [AddedToken(name, special=True, normalized=False, **options) for name in names]


def words(*names, **options):
    return [AddedToken(name, special=False, **options) for name in names]


def bos_template(name, number):
    return processors.TemplateProcessing(single=f"{name} $A", pair=f"{name} $A {name} $B", special_tokens=[(name, number)])


def llama_decoder():
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                              decoders.Strip(" ", 1, 0)])


def train_byte_level(normalizer, pre_tokenizer, added, vocab=VOCAB, **options):
    """A tokenizer whose alphabet is the 256 characters that stand for bytes."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=vocab, show_progress=False, max_token_length=16,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(training_sentences(), trainer)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(added)
    description = json.loads(tokenizer.to_str())
    description["model"].update(options)
    return description


def train_sentencepiece(normalizer, pre_tokenizer, added, decoder, post=None, vocab=VOCAB):
    """As converted from a SentencePiece model: ids 0 to 2 control, then 256 bytes, then pieces."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    control = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=vocab, show_progress=False, max_token_length=12,
                                  special_tokens=control + BYTE_PIECES)
    # Without a pre-tokenizer a whole sentence would be one word.
    lines = [word for line in few_characters() for word in (line.split(" ") if pre_tokenizer is None else [line])]
    tokenizer.train_from_iterator(lines, trainer)
    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = [token for token in description["added_tokens"] if token["content"] in control]
    tokenizer = Tokenizer.from_str(json.dumps(description))
    tokenizer.decoder = decoder
    if post is not None:
        tokenizer.post_processor = post
    tokenizer.add_tokens(added)
    return json.loads(tokenizer.to_str())


# ---- the families --------------------------------------------------------------------------------------------


def olmoe():
    added = special("<|endoftext|>", "<|padding|>", "|||IP_ADDRESS|||") + words("  ", "    ", " " * 8, " " * 24)
    return train_byte_level(normalizers.NFC(), raw_bytes(use_regex=True), added)


def qwen():
    added = special("<|endoftext|>", "<|im_start|>", "<|im_end|>") + words("<think>", "</think>", normalized=False)
    return train_byte_level(normalizers.NFC(), pre_tokenizers.Sequence([split(QWEN2), raw_bytes()]), added)


def granite():
    added = special("<|end_of_text|>", "<fim_prefix>", "<|start_of_role|>")
    return train_byte_level(None, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                           raw_bytes(use_regex=True)]), added)


def phi():
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    added = special("<|endoftext|>", "<|placeholder1|>") + special("<|assistant|>", "<|user|>", "<|end|>", rstrip=True)
    return train_sentencepiece(normalizer, None, added, llama_decoder())


def mixtral():
    return train_sentencepiece(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), [],
                               llama_decoder(), bos_template("<s>", 1))


def metaspace():
    return train_sentencepiece(None, pre_tokenizers.Metaspace(prepend_scheme="always", split=True),
                               words("[INST]", "[/INST]", normalized=False), decoders.Metaspace())


def deepseek2():
    steps = [split(pattern) for pattern in DEEPSEEK2]
    steps += [pre_tokenizers.Digits(individual_digits=True), raw_bytes()]
    added = special("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>") + words("<｜User｜>", normalized=False)
    description = train_byte_level(None, pre_tokenizers.Sequence(steps), added)
    description["post_processor"] = {
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": added[0].content, "type_id": 0}},
                                                 {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [], "special_tokens": {added[0].content: {"id": added[0].content, "ids": [VOCAB],
                                                          "tokens": [added[0].content]}}}
    return description


def deepseek3():
    steps = [split(pattern) for pattern in DEEPSEEK3] + [raw_bytes()]
    return train_byte_level(normalizers.Sequence([]), pre_tokenizers.Sequence(steps),
                            special("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"))


def gpt_oss():
    return train_byte_level(None, pre_tokenizers.Sequence([split(O200K), raw_bytes()]),
                            special("<|startoftext|>", "<|endoftext|>", "<|channel|>"))


def llama3():
    description = train_byte_level(None, pre_tokenizers.Sequence([split(LLAMA3), raw_bytes()]),
                                   special("<|begin_of_text|>", "<|eot_id|>"), ignore_merges=True)
    description["post_processor"] = {"type": "Sequence", "processors": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}},
                                                  {"Sequence": {"id": "A", "type_id": 0}}],
         "pair": [], "special_tokens": {"<|begin_of_text|>": {"id": "<|begin_of_text|>", "ids": [VOCAB],
                                                              "tokens": ["<|begin_of_text|>"]}}}]}
    # A token that no merge reaches: found only because the merges are ignored.
    description["model"]["merges"] = [pair for pair in description["model"]["merges"] if "".join(pair) != "Ġthe"]
    return description


def odd():
    """What no family has, but the library and we do."""
    steps = [pre_tokenizers.WhitespaceSplit(), split(r"[0-9]+", "contiguous"), split(r"-", "merged_with_previous"),
             split(r"[#@]", "merged_with_next"), split(r"x|[aeiou]{2,3}", "removed"),
             split(r"\p{Lu}?[^\p{Lu}]+", "isolated", invert=True), pre_tokenizers.Punctuation("isolated"),
             raw_bytes(use_regex=False, add_prefix_space=True)]
    normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.NFKC(), normalizers.Replace("~~", "-"),
                                       normalizers.Replace(Regex(r"q+"), "kw")])
    added = (special("<one>", lstrip=True, rstrip=True) + words("word", "word-word", single_word=True)
             + words("ＡＢＣ", "abc") + special("<norm>"))
    return train_byte_level(normalizer, pre_tokenizers.Sequence(steps), added, vocab=500)


def lower():
    """Decomposed and in lower case; an unknown token instead of bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, special_tokens=["<unk>"])
    tokenizer.train_from_iterator(few_characters(), trainer)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer.add_tokens(words("Größe", "STRASSE"))
    return json.loads(tokenizer.to_str())


FAMILIES = {"olmoe": olmoe, "qwen": qwen, "granite": granite, "phi": phi, "mixtral": mixtral, "metaspace": metaspace,
            "deepseek2": deepseek2, "deepseek3": deepseek3, "gpt-oss": gpt_oss, "llama3": llama3, "odd": odd,
            "lower": lower}


def build(name):
    """The text of a tokenizer.json, the same in every run."""
    return json.dumps(FAMILIES[name](), ensure_ascii=False, separators=(",", ":")) + "\n"
