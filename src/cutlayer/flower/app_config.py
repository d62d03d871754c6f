"""The keys of `flwr run --run-config` and `flower-supernode --node-config`.

Of a run, where the server is:

    run        the run file; empty for the defaults
    set        KEY=VALUE of the run file, more than one with spaces between, as after -o; values are YAML
    out        the run folder; empty for the run file's
    resume     true: go on with the run in `out`
    listen     HOST:PORT where the server's own stream is; port 0 takes a free one
    host       the name or address by which devices reach it
    devices    the first round waits for so many

Of a node, where the data is:

    name         the device's name in the fleet
    data         its training data
    model        as `cutlayer join --model`; may be left out, as all below
    folder       what must outlive its process; cutlayer-NAME where the SuperNode was started
    hardware     cpu, cuda or cuda:N
    max-blocks   the most blocks that its owner lends
    task, text, label, least-blocks, never, only, rounds, until
                 what its owner allows, as of `cutlayer join`; lists with commas

Paths are those of the machine that reads them; relative ones begin where its SuperLink or SuperNode was started.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutlayer.config import RunConfig, read_config
from cutlayer.device.limits import Limits
from cutlayer.errors import ConfigError
from cutlayer.joining import Joining
from cutlayer.report.run_folder import RunFolder
from cutlayer.transport.address import parted

Given = Mapping[str, str | int | float | bool | bytes]
"""A config as Flower hands it over."""
RUN_KEYS = ("run", "set", "out", "resume", "listen", "host", "devices")
LIMITS = ("task", "text", "label", "least-blocks", "never", "only", "rounds", "until")
NODE_KEYS = ("name", "data", "model", "folder", "hardware", "max-blocks", *LIMITS)


@dataclass(frozen=True, slots=True)
class Serving:
    """Settings for serving a run that Flower started.

    Attributes:
      config: of the run.
      resume: whether it goes on.
      listen: `HOST:PORT` for the server.
      host: by which devices reach it.
      devices: the first round waits for so many.
    """

    config: RunConfig
    resume: bool
    listen: str
    host: str
    devices: int


def read_serving(given: Given) -> Serving:
    """Reads a run config.

    Raises:
      ConfigError: Something in it cannot be.
    """
    _check_keys(given, RUN_KEYS, "run config")
    run, words, out = (_text(given, key, "run config") for key in ("run", "set", "out"))
    resume, devices = given.get("resume", False), given.get("devices", 1)
    if not isinstance(resume, bool):
        raise ConfigError(f"run config: resume: expected true or false, got {resume!r}. Change it.")
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise ConfigError(f"run config: devices: expected a number of at least 1, got {devices!r}. Change it.")
    listen = _text(given, "listen", "run config") or "127.0.0.1:0"
    host, _ = parted(listen, "run config: listen")
    if not resume:
        config = read_config(Path(run) if run else None, shlex.split(words), {"out": out} if out else {})
    elif run or words or not out:
        raise ConfigError(
            "run config: resume: expected the run folder in `out`, and nothing that describes a run, got "
            f"run={run!r}, set={words!r}, out={out!r}. The run goes on as its config.yaml says."
        )
    else:
        config = read_config(RunFolder.reopen(Path(out)).path / "config.yaml", values={"out": out})
    return Serving(config, resume, listen, _text(given, "host", "run config") or host, devices)


def read_joining(given: Given) -> Joining:
    """Reads a node config.

    Raises:
      ConfigError: Something in it cannot be.
    """
    _check_keys(given, NODE_KEYS, "node config")
    name, data, folder = (_text(given, key, "node config") for key in ("name", "data", "folder"))
    most = given.get("max-blocks")
    if not name or not data:
        raise ConfigError(
            "node config: expected the device's name and data, got "
            f"{', '.join(sorted(given)) or 'nothing'}. Start flower-supernode with "
            '--node-config \'name="pi-1" data="my.jsonl"\'.'
        )
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 0):
        raise ConfigError(f"node config: max-blocks: expected a number of at least 0, got {most!r}. Change it.")
    return Joining.read(
        name,
        data,
        model=_text(given, "model", "node config"),
        folder=folder,
        hardware=_text(given, "hardware", "node config") or "cpu",
        max_blocks=most,
        limits=_limits(given),
    )


def _limits(given: Given) -> Limits:
    """The limits that the owner of a node sets."""
    words: dict[str, Any] = {
        key: _text(given, key, "node config") for key in ("task", "text", "label", "never", "only", "until")
    }
    numbers: dict[str, Any] = {key.replace("-", "_"): given[key] for key in ("least-blocks", "rounds") if key in given}
    try:
        return Limits.read(**words, **numbers)
    except ConfigError as error:
        raise ConfigError(f"node config: {error}") from error


def _check_keys(given: Given, known: tuple[str, ...], where: str) -> None:
    """Flower hands over whatever it was told: a key that nothing reads would be an option that is ignored."""
    strange = sorted(given.keys() - set(known))
    if strange:
        raise ConfigError(f"{where}: expected {', '.join(known)}, got {', '.join(strange)}. Remove it.")


def _text(given: Given, key: str, where: str) -> str:
    value = given.get(key, "")
    if not isinstance(value, str):
        raise ConfigError(f"{where}: {key}: expected a text, got {value!r}. Put it in quotes.")
    return value
