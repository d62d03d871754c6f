"""`cutlayer up`: a server and processes of devices; the adapter is that of `cutlayer train`."""

from __future__ import annotations

from commands import World, run


def test_up_trains_the_adapter_of_train(world: World) -> None:
    flags = world.classification()
    trained = run("train", *flags, "--out", world.folder / "simulated", "--quiet")
    assert trained.code == 0, trained.err
    brought = run("up", *flags, "--out", world.folder / "real", "--quiet")
    assert brought.code == 0, brought.err
    adapters = [world.folder / name / "adapter" / "adapter_model.safetensors" for name in ("simulated", "real")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
