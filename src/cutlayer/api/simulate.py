"""`cutlayer train` from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cutlayer.api.apart import apart
from cutlayer.api.given import Given, config_from, goes_on
from cutlayer.api.paged import OnPage, beside_told, page_of
from cutlayer.api.told import OnRound, Told
from cutlayer.page.asked import started_of
from cutlayer.run.ending import Outcome
from cutlayer.run.inputs import prepare
from cutlayer.run.simulated import simulate as simulate_run


def simulate(
    run: Given = None,
    /,
    *,
    on_round: OnRound | None = None,
    resume: bool = False,
    page: str | bool | None = None,
    page_tls: str | Path | None = None,
    on_page: OnPage | None = None,
    **sections: Any,
) -> Outcome:
    """Runs a whole fleet in this process, on a virtual clock, and exports the adapter.

    Where an event loop is at work already, as in a notebook, the run has a thread of its own, and this one waits.

    Args:
      run: A run file, a config, its sections by name, or the folder of a run; None for the defaults.
      on_round: Called with the row of each round when its checkpoint is on the disk. An error in it ends the run,
        which `resume` goes on with.
      resume: Go on with the run that is in the folder `out`, if one is; else one that is there is an error.
      page: Serve a page of the run at this address, True for port 7072 of this machine or a free one; False for none,
        and None for what a run that goes on was told.
      page_tls: A folder with server.crt and server.key, for a page that others can reach.
      on_page: Called with the page's address, and with its token where it has one; without it that is the one in
        CUTLAYER_PAGE_TOKEN.
      sections: Of a run file, laid over `run`: `train={"rounds": 2}`, `method="memsfl"`, `out="runs/mine"`.

    Returns:
      Metrics, rows of the rounds, paths.

    Raises:
      UserError: Something in the config, the data or the model cannot be, or the run is another than it was.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from cutlayer import simulate
      >>> from cutlayer.testing.tiny import save_inputs
      >>> here = save_inputs(Path(tempfile.mkdtemp()), rows=48)  # a tiny model, and texts to classify
      >>> outcome = simulate(
      ...     model=here / "model",
      ...     data={"path": here / "data", "max_length": 16},
      ...     train={"rounds": 2, "local_steps": 1, "batch_size": 4},
      ...     method={"name": "splitlora", "cut": 2},
      ...     out=here / "run",
      ...     on_round=lambda row: print("round", row["round"]),
      ... )
      round 0
      round 1
      >>> sorted(outcome.metrics), len(outcome.rows), outcome.adapter == here / "run" / "adapter"
      (['accuracy', 'loss', 'macro_f1'], 2, True)
    """
    config = config_from(run, sections, "simulate")
    again, told = goes_on(config, resume=resume), Told(on_round)
    asked = page_of(page, page_tls, Path(config.out) if again else None)

    def work() -> Outcome:
        with beside_told(told, config, asked, on_page, simulated=True) as shown:
            return simulate_run(prepare(config), shown, resume=again, started=started_of(asked))

    return apart(work, told.stop)
