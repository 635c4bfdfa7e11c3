"""Makes tokenizer.json: byte-level BPE, lower case, of the demo's training captions.

    python3 -m venv venv && venv/bin/pip install tokenizers==0.22.2 pyarrow
    venv/bin/python configs/models/llama-tiny/make_tokenizer.py

The same data and the same version of tokenizers give the same file.
"""

import pathlib

import pyarrow.parquet as parquet
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).parent
DATA = HERE / "../../../tests/data/emoji"
VOCABULARY = 4096
END, BEGIN = "<|end_of_text|>", "<|begin_of_text|>"


def texts():
    captions = parquet.read_table(DATA / "emoji-dense-train.parquet")
    for column in ("raw_caption", "long_caption"):
        yield from captions[column].to_pylist()


tokenizer = Tokenizer(models.BPE())
# A word at the start of a caption is the same token as one within it. Not by ByteLevel's `add_prefix_space`: tokenizers 1.0 has none.
tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), normalizers.Prepend(" ")])
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.train_from_iterator(
    texts(),
    trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, BEGIN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    ),
)
tokenizer.post_processor = processors.Sequence([
    processors.ByteLevel(add_prefix_space=False, trim_offsets=True),
    processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]),
])
assert tokenizer.get_vocab_size() == VOCABULARY
tokenizer.save(str(HERE / "tokenizer.json"), pretty=False)
