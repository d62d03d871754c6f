"""A small language model that has read something: a GPT-2 of 1.5 M parameters, trained here on short texts, once.

No language model is at hand that is small enough for a few CPU-minutes a run, and LoRA on random weights has nothing to
adapt. This one has read messages and film reviews, and none of what it is then fine-tuned on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from datasets import load_dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

from cutlayer.files import write_folder_atomically

VOCABULARY, TOKENS, BATCH, STEPS, RATE = 2048, 64, 32, 600, 2e-3
READ = (("emotion", "text"), ("sst2", "sentence"))
"""Data sets and columns that it has read."""
WORDS = (*READ, ("gsm8k", "question"))
"""Data sets and columns whose words the tokenizer knows; the model itself learns from those of `READ` alone."""
END = "<end>"


def writer_folder(data: Path, work: Path) -> Path:
    """The folder of the model, made once.

    Args:
      data: Folder of the data sets.
      work: Where it is kept.
    """
    folder = work / "writer"
    if not folder.exists():
        work.mkdir(parents=True, exist_ok=True)
        write_folder_atomically(folder, lambda path: _make(path, data))
    return folder


def _make(folder: Path, data: Path) -> None:
    tokenizer = _tokenizer(data)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=128,
        n_layer=6,
        n_head=4,
        n_positions=128,
        bos_token_id=0,
        eos_token_id=0,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
    )
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.1)
    for ids_BT in _batches(tokenizer, data):
        loss = model(input_ids=ids_BT, labels=ids_BT).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


def _texts(data: Path, sources: tuple[tuple[str, str], ...]) -> Iterator[str]:
    for name, column in sources:
        rows = load_dataset("parquet", data_files=str(data / name / "train.parquet"), split="train")
        yield from rows[column][:20000]


def _tokenizer(data: Path) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(data, WORDS), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END)


def _batches(tokenizer: PreTrainedTokenizerFast, data: Path) -> Iterator[torch.Tensor]:
    """`STEPS` batches (B, T) of the texts, one after the other without a gap, in a seeded order."""
    encoded = tokenizer([text + END for text in _texts(data, READ)])["input_ids"]
    order = torch.randperm(len(encoded), generator=torch.Generator().manual_seed(0)).tolist()
    ids_N = torch.tensor([token for place in order for token in encoded[place]])
    size = BATCH * TOKENS
    for step in range(STEPS):
        start = step * size % (len(ids_N) - size)
        yield ids_N[start : start + size].view(BATCH, TOKENS)
