"""FlexLoRA: whole rounds against dense matrices. Ranks and what is sent: test_hetlora.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from bases import open_base
from cutlayer.methods.table import build_method
from cutlayer.model.low_rank import factor_names
from cutlayer.policies.moments import FreshMoments
from cutlayer.testing.playground import fleet_of, play, streams_for
from cutlayer.wire.messages import Assignment


def test_the_next_round_starts_from_the_truncated_mean_of_the_products(tiny_model: Callable[[str, str], Path]) -> None:
    base = open_base(tiny_model("llama", "causal-lm"), "causal-lm")
    fleet = fleet_of(3)
    streams = streams_for(fleet, "causal-lm", steps=4)
    run = play(base, build_method("flexlora", {}, seed=0), fleet, streams)
    second = {m.device: m for m in run.sent_down if isinstance(m, Assignment) and m.round == 1}
    weights = {name: sum(batch.weight for batch in stream.given[:2]) for name, stream in streams.items()}
    parts = dict(zip(sorted(streams), run.contributions[0], strict=True))
    for b, a in factor_names(base.shapes):
        products = [
            weights[name] / sum(weights.values()) * part.adapter[b].double() @ part.adapter[a].double()
            for name, part in parts.items()
        ]
        u, s, v = torch.linalg.svd(torch.stack(products).sum(0), full_matrices=False)
        for message in second.values():
            rank = message.plan.ranks[0]
            sent = message.adapter[b].double() @ message.adapter[a].double()
            torch.testing.assert_close(sent, u[:, :rank] * s[:rank] @ v[:rank], rtol=1e-4, atol=1e-7)


def test_moments_begin_anew(tiny_model: Callable[[str, str], Path]) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification")
    run = play(
        base,
        build_method("flexlora", {}, seed=0),
        fleet_of(1),
        streams_for(fleet_of(1), "classification", steps=4),
    )
    assert all(m.plan.clause(FreshMoments) for m in run.sent_down if isinstance(m, Assignment))
