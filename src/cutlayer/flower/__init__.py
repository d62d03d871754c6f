"""Flower starts the programs: one message per run, then devices talk with the server on a stream of their own."""
