"""What holds cutlayer to its laws: a run on a tiny model, plain PEFT to compare it with, networks that fail by seed."""
