#!/usr/bin/env python3
"""Makes tokenizer.json, a small tokenizer of CLIP's kind, and tests/golden/text/clip-tokens.json, what transformers makes of texts with it.

    python3 -m venv venv && venv/bin/pip install tokenizers==0.22.2 transformers==4.57.6 ftfy
    venv/bin/python configs/models/clip-text-tiny/make_tokenizer.py

The pipeline is that of OpenAI's CLIP as Hugging Face writes it down (NFC, one space for many, lower case, the same expression that
splits text, bytes as the alphabet, `</w>` at a word's end, a begin and an end token); the vocabulary is learned from the short
captions of tests/data and has 1,024 entries instead of 49,408. The reference ids come from transformers' `CLIPTokenizer`, which is a
program of its own in Python, cut to 77; texts that `ftfy` would mend before (curly quotes made straight) are left out: OpenAI's
own tokenizer does so, and no tokenizer.json can say it.
"""
import json
import pathlib
import tarfile
import tempfile

import ftfy
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

assert transformers.__version__ == "4.57.6", transformers.__version__

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
VOCABULARY = 1024
SPLIT = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
HARD = [
    "", " ", "a", "IT'S we'Ve don't 'tis", "1234567 12 3.14", "two  spaces\n\nand lines\t ", "Grüße aus Köln — naïve café",
    "日本語の文章。", "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag", "http://example.org/a?b=c&d=%20#e", "!!!??...---___***", "ab " * 200, "x" * 300,
]


def captions():
    for path in sorted((ROOT / "tests/data/emoji/emoji-wds/train").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                if member.name.endswith(".txt"):
                    yield tar.extractfile(member).read().decode().strip()


def trained(texts):
    tokenizer = Tokenizer(models.BPE(unk_token=END, continuing_subword_prefix="", end_of_word_suffix="</w>", fuse_unk=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False))
    # As in CLIP every byte stands in the vocabulary at a word's end, too, and the two tokens around a text are the last.
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    vocabulary = alphabet + [byte + "</w>" for byte in alphabet]
    vocabulary += [a + b for a, b in merges if a + b not in vocabulary][:VOCABULARY - 2 - len(vocabulary)]
    known = set(vocabulary)
    merges = [(a, b) for a, b in merges if {a, b, a + b} <= known]
    ids = {token: i for i, token in enumerate(vocabulary + [BEGIN, END])}
    tokenizer.model = models.BPE(
        vocab=ids, merges=merges, unk_token=END, continuing_subword_prefix="", end_of_word_suffix="</w>", fuse_unk=False)
    tokenizer.add_special_tokens([AddedToken(BEGIN, special=True, normalized=True), AddedToken(END, special=True, normalized=False)])
    tokenizer.post_processor = processors.RobertaProcessing(
        sep=(END, ids[END]), cls=(BEGIN, ids[BEGIN]), trim_offsets=False, add_prefix_space=False)
    return tokenizer, ids, merges


def reference(ids, merges):
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, rules = pathlib.Path(folder, "vocab.json"), pathlib.Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps(ids))
        # The class reads as many merges as CLIP's vocabulary has; lines beyond the last are none.
        rules.write_text("#version: 0.2\n" + "\n".join(" ".join(merge) for merge in merges) + "\n")
        return transformers.CLIPTokenizer(str(vocabulary), str(rules))


texts = list(captions())
tokenizer, ids, merges = trained(texts)
assert len(ids) == VOCABULARY, len(ids)
tokenizer.save(str(HERE / "tokenizer.json"))
slow = reference(ids, merges)
made = [[text, slow(text, max_length=77, truncation=True).input_ids] for text in texts[::25] + HARD if ftfy.fix_text(text) == text]
(ROOT / "tests/golden/text/clip-tokens.json").write_text(json.dumps(made, ensure_ascii=False, separators=(",", ":")) + "\n")
print(f"{len(made)} texts, {len(merges)} merges")
