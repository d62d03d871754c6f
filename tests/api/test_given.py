"""One config, however it is given."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cutlayer.api.given import config_from, goes_on
from cutlayer.config import RunConfig
from cutlayer.errors import ConfigError

SECTIONS = {"method": {"name": "memsfl", "cut": 2}, "train": {"rounds": 3}, "data": {"path": "there", "max_length": 32}}


def test_a_file_sections_and_a_config_are_one(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(SECTIONS))
    expected = config_from(None, SECTIONS, "here")
    assert expected.train.rounds == 3
    for given in (tmp_path / "run.yaml", str(tmp_path / "run.yaml"), SECTIONS, expected):
        found = config_from(given, {}, "here")  # type: ignore[arg-type]  each is one of `Given`
        assert found.model_dump() == expected.model_dump()


def test_sections_are_laid_over_it() -> None:
    config = config_from(SECTIONS, {"train": {"rounds": 5}, "out": Path("elsewhere")}, "here")
    assert (config.train.rounds, config.data.max_length, config.out) == (5, 32, "elsewhere")


def test_the_folder_of_a_run_is_that_run_wherever_it_stands(tmp_path: Path) -> None:
    saved = config_from(SECTIONS, {"out": "where/it/was"}, "here").model_dump(mode="json")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    assert config_from(tmp_path, {}, "here").model_dump() == {
        **config_from(SECTIONS, {}, "here").model_dump(),
        "out": str(tmp_path),
    }


@pytest.mark.parametrize("sections", [{"trian": {"rounds": 1}}, {"train": {"round": 1}}, {"train": {"rounds": "two"}}])
def test_what_cannot_be_is_said_with_the_callers_name(sections: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"expected .*, got "):
        config_from(None, sections, "simulate")


def test_only_the_same_run_goes_on(inputs: Path, tmp_path: Path) -> None:
    def config(rounds: int) -> RunConfig:
        data = {"path": inputs / "data", "max_length": 16}
        return config_from(
            None, {"model": inputs / "model", "data": data, "train": {"rounds": rounds}, "out": tmp_path}, "t"
        )

    assert not goes_on(config(2), resume=True), "there is no run yet"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config(2).model_dump(mode="json")))
    assert goes_on(config(2), resume=True)
    assert not goes_on(config(2), resume=False)
    with pytest.raises(ConfigError, match=r"train\.rounds is 1, not 2"):
        goes_on(config(1), resume=True)
    assert goes_on(config(3), resume=True), "longer"
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["train"]["rounds"] == 3
