"""Cutting a Hugging Face model, adapters on it, what a part costs."""
