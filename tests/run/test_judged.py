"""The validation rows that judge: a seeded sample, the same in every round."""

from __future__ import annotations

import pytest

from cutlayer.config import read_config
from cutlayer.run.inputs import ServerInputs


def judged(seed: int, wanted: int | None, rows: int = 40) -> list[int]:
    changes = [f"train.seed={seed}", *([] if wanted is None else [f"train.eval_rows={wanted}"])]
    inputs = ServerInputs(read_config(None, changes), range(rows), (), 0)  # type: ignore[arg-type]
    return list(inputs.judged)


def test_a_sample_by_the_seed() -> None:
    sample = judged(0, 9)
    assert len(set(sample)) == 9
    assert sample == sorted(sample) == judged(0, 9)
    assert sample != judged(1, 9)
    assert set(sample) <= set(range(40))


@pytest.mark.parametrize("wanted", [None, 40, 1000])
def test_all_of_them(wanted: int | None) -> None:
    assert judged(0, wanted) == list(range(40))
