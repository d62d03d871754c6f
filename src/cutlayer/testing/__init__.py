"""Modelled networks that fail by a seeded schedule, for tests and benchmarks."""
