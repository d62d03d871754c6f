"""cutlayer: fine-tune one large language model with LoRA on private data that stays on many weak, unequal devices."""

__version__ = "0.1.0"
