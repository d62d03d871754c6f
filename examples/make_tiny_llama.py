"""Makes a tiny random Llama with a tokenizer learnt from your data: to try causal LM where there is no model hub.

python examples/make_tiny_llama.py models/tiny-llama --data data/gsm8k --columns question answer
cutlayer train --model models/tiny-llama --data data/gsm8k --task causal-lm \
    --prompt question --answer answer --template plain
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cutlayer.data.source import load_tables, require_columns


def learn_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of these texts: every text can be encoded, nothing is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--columns", nargs="+", required=True)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    train = load_tables(asked.data).train
    require_columns(train, asked.columns, f"data {asked.data}")
    tokenizer = learn_tokenizer([text for column in asked.columns for text in train.cells(column)], asked.vocabulary)
    torch.manual_seed(asked.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=asked.width,
        intermediate_size=4 * asked.width,
        num_hidden_layers=asked.blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(asked.out)
    tokenizer.save_pretrained(asked.out)
    print(f"{asked.out}: a random Llama of {asked.blocks} blocks, {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
