"""Server steps: how activations that have arrived are processed on the one base model. One way per file.

one_at_a_time   one device after the other, adapters swapped, in an order
merged          all devices' activations in one batch
pooled          all devices' samples in one pool, shuffled, in mini-batches mixed from it
mixed           samples of several devices from a shuffle buffer, in a pipeline of stages
halves          in two halves, forward and later back, for devices that have the labels
train           the step on one device's activations, which the others are made of
"""
