"""The distance of a merged batch's labels from those of the whole fleet, which MergeSFL keeps small.

With V_i the label distribution of device i and d_i its samples in a batch,

    Phi(d) = sum_i d_i V_i / sum_i d_i        the labels of the merged batch
    Phi_0  = mean_i V_i                       those of the fleet, every device alike
    KL     = sum_j Phi_j log(Phi_j / Phi_0j)  in nats; 0 where the batch is as the fleet

Existence is sure (reviews of the paper), the formulas are recalled with confidence (MergeSFL's control module is not in
its public code).

Shapes: P mixes at once, N devices, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Situation

Floats = NDArray[np.float64]


def label_distributions(situation: Situation, devices: Sequence[str]) -> Floats:
    """V: each device's share of each class, (N, C).

    Raises:
      ConfigError: The labels of a device are not known: a language model has no classes.
    """
    missing = [device for device in devices if device not in situation.label_counts]
    if missing:
        raise ConfigError(
            f"method.select: expected the class counts of every device, got none of {missing[0]}: only classification "
            "has classes. Set method.select=random and leave method.max_kl out."
        )
    counts_NC = np.array([situation.label_counts[device] for device in devices], np.float64)
    shares_NC: Floats = counts_NC / counts_NC.sum(axis=1, keepdims=True)
    return shares_NC


def label_kl(sizes_PN: Floats, shares_NC: Floats, fleet_C: Floats) -> Floats:
    """KL of each of P merged batches, (P,).

    Args:
      sizes_PN: samples of each device; 0 for one that does not take part. Some device of each batch does.
      shares_NC: V.
      fleet_C: Phi_0.
    """
    mix_PC = sizes_PN @ shares_NC / sizes_PN.sum(axis=1, keepdims=True)
    ratio_PC = np.divide(mix_PC, fleet_C, out=np.ones_like(mix_PC), where=mix_PC > 0)
    kl_P: Floats = (mix_PC * np.log(ratio_PC)).sum(axis=1)
    return kl_P
