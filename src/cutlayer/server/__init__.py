"""Parts of the server: its queue, adapters, steps and aggregation, evaluation, checkpoints."""
