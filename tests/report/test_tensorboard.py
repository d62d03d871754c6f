import subprocess
import sys
from pathlib import Path

from cutlayer.report.tensorboard import Scalars


def written(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The points that TensorBoard itself would show: (step, value) by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder)).Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [(point.step, point.value) for point in accumulator.Scalars(tag)] for tag in tags}


def row(round: int, loss: float | None) -> dict[str, object]:
    return {
        "round": round,
        "loss": loss,
        "samples": 16,
        "done": True,
        "validation": {"accuracy": 0.5},
        "devices": {"a": {"samples": 16}},
    }


def test_every_number_of_a_row_becomes_a_scalar_at_its_round_counted_from_one(tmp_path: Path) -> None:
    scalars = Scalars(tmp_path / "tensorboard")
    scalars.add(row(0, 2.0))
    scalars.add(row(1, None))
    scalars.close()
    assert written(tmp_path / "tensorboard") == {
        "fleet/devices": [(1, 1.0), (2, 1.0)],
        "train/loss": [(1, 2.0)],
        "train/samples": [(1, 16.0), (2, 16.0)],
        "validation/accuracy": [(1, 0.5), (2, 0.5)],
    }


CONFIG = {"train": {"lr": 0.25, "rounds": 2}, "data": {"path": "/somebody/reviews"}, "out": "runs/mine"}


def test_the_config_is_there_as_text_and_as_hyperparameters(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    for first in (0, 1):  # the second goes on, and says it no more
        scalars = Scalars(tmp_path, CONFIG)
        scalars.add(row(first, 2.0))
        scalars.close()
    accumulator = EventAccumulator(str(tmp_path)).Reload()
    (text,) = accumulator.Tensors("config/text_summary")
    assert text.tensor_proto.string_val[0].decode().splitlines()[:3] == [
        "    train:",
        "      lr: 0.25",
        "      rounds: 2",
    ]
    experiment, start, _ = (
        HParamsPluginData.FromString(accumulator.SummaryMetadata(tag).plugin_data.content)
        for tag in ("_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info")
    )
    assert [one.name.tag for one in experiment.experiment.metric_infos] == [
        "train/loss",
        "validation/accuracy",
    ]
    told = start.session_start_info.hparams
    assert (told["train.lr"].number_value, told["data.path"].string_value) == (0.25, "reviews")


def test_a_resume_purges_the_rounds_that_it_repeats(tmp_path: Path) -> None:
    killed = Scalars(tmp_path)
    for round in range(4):
        killed.add(row(round, 1.0))
    resumed = Scalars(tmp_path)
    resumed.add(row(2, 3.0))
    resumed.close()
    assert written(tmp_path)["train/loss"] == [(1, 1.0), (2, 1.0), (3, 3.0)]
    killed.close()


def test_a_row_is_in_the_file_without_a_close(tmp_path: Path) -> None:
    killed = Scalars(tmp_path)
    for round in range(3):
        killed.add(row(round, 1.0))
        assert len(written(tmp_path)["train/loss"]) == round + 1
    killed.close()


def test_nothing_is_made_before_the_first_row(tmp_path: Path) -> None:
    Scalars(tmp_path / "tensorboard").close()
    assert list(tmp_path.iterdir()) == []


def test_importing_the_run_folder_does_not_import_tensorboard() -> None:
    code = "import sys, cutlayer.report.run_folder; sys.exit('torch.utils.tensorboard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
