"""`cutlayer up`: a server and processes of devices; the adapter is that of `cutlayer train`."""

from __future__ import annotations

import pytest

from commands import World, run


def test_up_trains_the_adapter_of_train(world: World) -> None:
    flags = world.classification()
    trained = run("train", *flags, "--out", world.folder / "simulated", "--quiet")
    assert trained.code == 0, trained.err
    brought = run("up", *flags, "--out", world.folder / "real", "--quiet")
    assert brought.code == 0, brought.err
    adapters = [world.folder / name / "adapter" / "adapter_model.safetensors" for name in ("simulated", "real")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_on_a_gguf_file_too(dtype: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process of a device reads its part of the file, and rounds it where the run says so."""
    pytest.importorskip("gguf")
    from ggufs import save_gguf

    monkeypatch.setenv("XDG_CACHE_HOME", str(world.folder / "cache"))
    model = save_gguf(world.folder / "tiny.gguf")
    flags = [*world.causal_lm(), "--model", model, "--rounds", 1, "--dtype", dtype]
    adapters = []
    for command in ("train", "up"):
        ran = run(command, *flags, "--out", world.folder / command, "--quiet")
        assert ran.code == 0, ran.err
        adapters.append((world.folder / command / "adapter" / "adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1]
