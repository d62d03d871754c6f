"""Tools for the laws of cutlayer: a run on a tiny model, plain PEFT to compare it with, networks that fail by seed."""
