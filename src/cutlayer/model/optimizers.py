"""Rules: how a step moves an owner's trainable tensors.

A rule is a function of the parameters with their gradients, of what it remembers of each (`<name>#<key>`, in a
dictionary that it writes to) and of the learning rate. It keeps nothing itself, so one rule serves many owners, and a
checkpoint of what it remembers is that dictionary.

    rule        step                                                   remembers
    ----------  -----------------------------------------------------  ---------------------------
    adamw       torch's fused AdamW                                    step, exp_avg, exp_avg_sq
    sgd         w <- w - lr v,  v <- momentum v + g + decay w          momentum_buffer, if it has momentum
    zeroth      w <- w - lr (sum_k c_k z(s_k) + decay w)               nothing
    quantised   another rule's, on gradients rounded to few levels     that of the other, and draws
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw as torch_adamw

from cutlayer.errors import ConfigError
from cutlayer.model.noise import Term, pieces, uniform
from cutlayer.types import Adapter

Rule = Callable[[Mapping[str, nn.Parameter], Adapter, float], None]
"""A step: (parameters by global name, what it remembers, learning rate). It runs without autograd."""


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW.

    Attributes:
      weight_decay: decoupled decay of every trainable tensor.
      beta1, beta2, epsilon: as in the paper.
      clip: largest norm of the gradient of one owner's tensors on one side of the cut; 0 is no clipping. A device
        and the server each clip what they hold: neither sees the other's gradients.
    """

    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip: float = 0.0


def adamw(settings: OptimizerSettings) -> Rule:
    """AdamW. A tensor without a gradient stays, and nothing is remembered of it."""

    def rule(parameters: Mapping[str, nn.Parameter], moments: Adapter, rate: float) -> None:
        if settings.clip > 0:
            nn.utils.clip_grad_norm_(parameters.values(), settings.clip)
        moving = {name: parameter for name, parameter in parameters.items() if parameter.grad is not None}
        for name, parameter in moving.items():
            if f"{name}#step" not in moments:
                moments[f"{name}#step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                moments[f"{name}#exp_avg"] = torch.zeros_like(parameter)
                moments[f"{name}#exp_avg_sq"] = torch.zeros_like(parameter)
        if not moving:
            return
        torch_adamw(
            list(moving.values()),
            [gradient for parameter in moving.values() if (gradient := parameter.grad) is not None],
            [moments[f"{name}#exp_avg"] for name in moving],
            [moments[f"{name}#exp_avg_sq"] for name in moving],
            [],
            [moments[f"{name}#step"] for name in moving],
            fused=True,
            amsgrad=False,
            beta1=settings.beta1,
            beta2=settings.beta2,
            lr=rate,
            weight_decay=settings.weight_decay,
            eps=settings.epsilon,
            maximize=False,
        )

    return rule


def sgd(*, momentum: float = 0.0, weight_decay: float = 0.0) -> Rule:
    """Gradient descent, as torch's SGD does it: the first step takes the gradient for its momentum.

    Args:
      momentum: What is left of the last step's direction in the next; 0 remembers nothing.
      weight_decay: Added to the gradient, this much of each weight.
    """

    def rule(parameters: Mapping[str, nn.Parameter], moments: Adapter, rate: float) -> None:
        for name, parameter in parameters.items():
            if parameter.grad is None:
                continue
            direction = parameter.grad
            if weight_decay:
                direction = direction.add(parameter, alpha=weight_decay)
            if momentum:
                key = f"{name}#momentum_buffer"
                if key in moments:
                    moments[key].mul_(momentum).add_(direction)
                else:
                    moments[key] = direction.clone()
                direction = moments[key]
            parameter.add_(direction, alpha=-rate)

    return rule


def zeroth(terms: Sequence[Term], *, weight_decay: float = 0.0) -> Rule:
    """One step against a sum of seeded noise: what MeZO, P-RGE and HO-SFL take for a gradient.

    Every tensor moves, in place and some elements at a time; its gradient is never held, nor looked at. Whoever has
    the seeds and factors takes the same step, to the bit, on any machine.

    Args:
      terms: Seeds and the factors of their noise, added up in this order.
      weight_decay: Added to the sum, this much of each weight.
    """

    def rule(parameters: Mapping[str, nn.Parameter], moments: Adapter, rate: float) -> None:  # noqa: ARG001
        for piece in pieces(parameters):
            step_N, values_N = piece.combined(terms), piece.values_N.float()
            if weight_decay:
                step_N.add_(values_N.mul(weight_decay))  # two operations: one might be contracted
            piece.values_N.copy_(values_N.sub(step_N.mul_(rate)))

    return rule


def quantised(rule: Rule, *, bits: int, seed: int) -> Rule:
    """Another rule on gradients that were rounded at random to few levels, unbiased: their mean is the gradient.

    With s = 2^(bits - 1) - 1 levels on either side and M the largest magnitude in the tensor, g becomes a whole
    multiple of M / s: the one below or the one above, more likely the nearer one.

    Args:
      rule: What then steps.
      bits: Of one element, its sign among them; at least 2.
      seed: Of the draws; owners that must not round alike have seeds of their own.

    Raises:
      ConfigError: Fewer than 2 bits, or more than 16.
    """
    if not 2 <= bits <= 16:
        raise ConfigError(f"gradient bits: expected 2 to 16, got {bits}. Change the number of bits.")
    levels = 2 ** (bits - 1) - 1

    def quantise(gradient: Tensor, name: str, draw: int) -> None:
        scale = gradient.abs().max().float() / levels
        for piece in pieces({name: gradient}) if scale > 0 else ():
            steps_N = piece.values_N.float() / scale
            below_N = steps_N.floor()
            u_N = uniform(seed, f"{name}#{draw}", piece.start, piece.end, gradient.device)
            piece.values_N.copy_((below_N + (u_N < steps_N - below_N)).mul(scale))

    def quantising(parameters: Mapping[str, nn.Parameter], moments: Adapter, rate: float) -> None:
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                draws = moments.setdefault(f"{name}#draws", torch.zeros((), dtype=torch.int64))
                parameter.grad = parameter.grad.contiguous()
                quantise(parameter.grad, name, int(draws))
                draws += 1
        rule(parameters, moments, rate)

    return quantising
