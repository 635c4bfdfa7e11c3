#!/usr/bin/env python3
"""Makes tokenizer.json, a small tokenizer of Llama 3's kind, and tokens.json, what it makes of the repository's texts.

    python3 -m venv venv && venv/bin/pip install tokenizers==0.22.2 pyarrow
    venv/bin/python tests/golden/text/make_tokens.py

Llama 3's own tokenizer is not free to be copied here. This one has its pipeline: the same expression that splits text, bytes as
the alphabet, ignore_merges, special tokens, a begin token put before a text. Its vocabulary is learned from the WordNet glosses of tests/data
and has 12,000 entries instead of 128,000. tokens.json holds, for each corpus, digests over the ids of all texts, the ids of some
texts that are hard, and captions in a chat template with the number of tokens that the reference averages: all of it as tokenizers
0.22.2 makes them, the release that models are trained with.

A digest is the CRC-32, for each 1,000 texts, over each text's number of ids and then its ids, all as 32 bits, lower byte first.
"""
import json
import pathlib
import struct
import zlib

import pyarrow.parquet as parquet
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).resolve().parent
DATA = HERE / "../../data/emoji"
VOCABULARY = 12_000
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
HARD = [
    "", " ", "\n", "\n\n", " \n a", "a", " a", "\na caption after a line end", "trailing space ", "two  spaces   three",
    "IT'S we'Ve I'LL don't 'tis ''s", "1234567 12 3.14159 1,000,000", "x\r\ny\r\n\r\nz", "tab\there", "   \n\n   indented",
    "Grüße aus Köln — naïve café", "日本語の文章。漢字とかな", "Ωμέγα и кириллица", "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, ☺️",
    "e\u0301 is not é", "\u00a0nbsp\u2003em\u3000wide", "<|eot_id|>", "a<|eot_id|>b", "<|begin_of_text|><|eot_id|> <|eot_id|>",
    "<|start_header_id|>user<|end_header_id|>\n\nA man.<|eot_id|>", "<|unknown|>", "http://example.org/a?b=c&d=%20#e",
    "!!!??...---___***", "\u200bzero\u200dwidth", "ﬁ ligature ｆｕｌｌ", "a" * 300, "ab " * 200, "\U0010ffff\u0000\u0001",
    "ŁÓDŹ ǅ ß ẞ ſ", "٣٤٥ 一二三 Ⅷ ½", "don’t ‘quote’ “double”", "def f(x):\n\treturn x**2  # ok\n",
]


def column(name, column):
    return [text or "" for text in parquet.read_table(DATA / name)[column].to_pylist()]


def corpora():
    return {
        "text-train": column("text-train.parquet", "text"),
        "text-validation": column("text-validation.parquet", "text"),
        "raw_caption": column("emoji-dense-train.parquet", "raw_caption"),
        "long_caption": column("emoji-dense-train.parquet", "long_caption"),
        # One text of everything: a document of megabytes.
        "joined": ["".join(column("text-train.parquet", "text"))],
        "hard": HARD,
    }


def train(texts):
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    begin = SPECIAL[0]
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{begin} $A", pair=f"{begin} $A {begin} $B:1",
                                      special_tokens=[(begin, tokenizer.token_to_id(begin))]),
    ])
    return tokenizer


def digest(tokenizer, texts, special):
    sums, tokens = [], 0
    for start in range(0, len(texts), 1000):
        crc = 0
        for encoding in tokenizer.encode_batch(texts[start:start + 1000], add_special_tokens=special):
            crc = zlib.crc32(struct.pack(f"<{len(encoding.ids) + 1}I", len(encoding.ids), *encoding.ids), crc)
            tokens += len(encoding.ids)
        sums.append(crc)
    return {"texts": len(texts), "bytes": sum(len(t.encode()) for t in texts), "tokens": tokens, "crc32": sums}


def rendered(tokenizer):
    """Captions in Llama 3's chat template: run_supervised.py's `prepare_for_tokenization` around instruction, "; " and text, and the
    number of tokens that llm2vec.py's `tokenize` averages: those of what follows its separator, with <|eot_id|>, by themselves."""
    template = "<|start_header_id|>user<|end_header_id|>\n\n{caption}<|eot_id|>"
    instructions = [None, "Given a sentence, retrieve a detailed relevant sentence", "Given a caption, retrieve a similar relevant caption."]
    captions = [text for text in HARD if text] + column("emoji-dense-val.parquet", "long_caption")[:10] + ["\n\nA dog.", "\nA dog"]
    out = []
    for instruction in instructions:
        for caption in captions:
            text = caption if instruction is None else f"{instruction}; {caption}"
            ids = tokenizer.encode(template.replace("{caption}", text), add_special_tokens=True).ids
            own = len(tokenizer.encode(caption + "<|eot_id|>", add_special_tokens=False).ids)
            out.append({"template": template, "instruction": instruction, "caption": caption, "ids": ids, "own": own})
    return out


def main():
    assert tokenizers.__version__ == "0.22.2", tokenizers.__version__
    texts = corpora()
    path = HERE / "tokenizer.json"
    trained = train(texts["text-train"] + texts["long_caption"])
    assert trained.get_vocab_size() == VOCABULARY
    trained.save(str(path), pretty=False)
    golden = {"made_with": f"tokenizers {tokenizers.__version__}"}
    golden["rendered"] = rendered(Tokenizer.from_file(str(path)))
    for name, file in [("llama3-style", path), ("demo", HERE / "../../../configs/models/llama-tiny/tokenizer.json")]:
        tokenizer = Tokenizer.from_file(str(file))
        golden[name] = {
            "plain": {corpus: digest(tokenizer, texts[corpus], False) for corpus in texts},
            "special": {corpus: digest(tokenizer, texts[corpus], True) for corpus in texts},
            "hard": [[text, tokenizer.encode(text, add_special_tokens=False).ids] for text in HARD],
        }
    (HERE / "tokens.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
