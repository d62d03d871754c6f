"""The gate: who may come in, and which of the messages that they send are let through to the rounds."""
