"""The page of one run: report.html, which needs nothing else, and the same page while the run is served.

`run.css` and `run.js` beside this file are put into it. What a page shows of a run it has as pieces: a whole one in the
file, or a whole one and then what has changed (`live.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from cutlayer.config import RunConfig, read_config
from cutlayer.page.digest import COLUMNS, Digest
from cutlayer.page.document import html_page, short_name
from cutlayer.page.figures import AXES
from cutlayer.page.timeline import KINDS
from cutlayer.reading import yaml_text
from cutlayer.report.gantt import COLOURS, OTHER
from cutlayer.report.run_folder import RunFolder

HERE = Path(__file__).parent
LIVE_POLICY = "; connect-src 'self'"


def digest_of(folder: RunFolder, config: RunConfig | None = None) -> Digest:
    """A digest of a run of which nothing has been read yet.

    Args:
      folder: of the run.
      config: of the run; None for what config.yaml says.

    Raises:
      ConfigError: config.yaml cannot be read.
    """
    config = config or read_config(folder.path / "config.yaml")
    simulated = folder.simulated
    return Digest(config.model_dump(mode="json"), folder.read_about(), folder.path, simulated=simulated)


def report_of(folder: RunFolder) -> str:
    """report.html of what a folder holds so far.

    Raises:
      UserError: Something in it cannot be read.
    """
    digest = digest_of(folder)
    for _ in digest.reading(folder):
        pass
    return finished_page(digest, folder.read_summary())


def finished_page(digest: Digest, summary: Mapping[str, Any]) -> str:
    """report.html.

    Args:
      digest: of the run.
      summary: of summary.json; empty where the run has not ended.
    """
    digest.ended = summary or None
    return _page(digest, {"run": whole(digest), "history": digest.histories()}, drawn=digest.figures.drawn())


def watched_page(digest: Digest) -> str:
    """The page that asks for its pieces at `events`."""
    return _page(digest, {"live": {"events": "events", "history": "history"}}, more_policy=LIVE_POLICY)


def whole(digest: Digest) -> dict[str, Any]:
    """The piece for a page that has nothing yet; charts apart."""
    return {
        "whole": True,
        "tiles": digest.tiles(),
        "waiting": digest.held_up(),
        "status": _status(digest),
        "span": digest.round_span(),
        "rows": list(enumerate(digest.rows())),
        "numbers": digest.figures.numbers(),
        "time": digest.timeline.whole(),
    }


def _status(digest: Digest) -> str:
    if digest.ended is not None:
        return "The run has ended."
    done = f"{digest.rounds_done:,} of {digest.rounds:,} rounds" if digest.rounds_done != 1 else "one round"
    return f"As far as it was when this page was written: {done}."


def _page(
    digest: Digest, data: dict[str, Any], *, drawn: Mapping[str, list[str]] | None = None, more_policy: str = ""
) -> str:
    kinds = "".join(f".k{place} {{ fill: {COLOURS.get(kind, OTHER)}; }}\n" for place, kind in enumerate(KINDS))
    return html_page(
        _title(digest),
        "\n".join([*_head(digest), *_charts(drawn or {}), *_devices(), *_timeline(), *_how(digest)]),
        styles=[(HERE / "run.css").read_text(encoding="utf-8"), kinds],
        scripts=[(HERE / "run.js").read_text(encoding="utf-8")],
        data=data | {"columns": COLUMNS, "kinds": KINDS, "axes": [axis.key for axis in AXES]},
        more_policy=more_policy,
    )


def _title(digest: Digest) -> str:
    return f"{digest.folder.resolve().name}: {digest.config['method']['name']}"


def _head(digest: Digest) -> Iterator[str]:
    config = digest.config
    data, train = config["data"], config["train"]
    yield f"<h1>{escape(_title(digest))}</h1>"
    facts = [
        f"{short_name(str(config['model']['name']))} on {short_name(str(data['path']))}, spread {data['spread']}",
        f"fleet {_fleet(config['fleet'])}",
        f"{train['rounds']:,} rounds of {train['local_steps']} steps at batch {train['batch_size']}",
        f"seed {train['seed']}",
    ]
    yield f'<p class="lead">{escape(" · ".join(facts))}</p>'
    if summary := digest.about.get("method", {}).get("summary"):
        yield f"<p>{escape(str(config['method']['name']))}: {escape(str(summary))}.</p>"
    yield '<p id="status" role="status"></p>'
    yield '<noscript><p class="failed">Devices and the timeline are shown by a script of this page.</p></noscript>'
    yield '<nav aria-label="Parts of this page"><a href="#curves">Loss and metrics</a> <a href="#devices">Devices</a>'
    yield '<a href="#timeline">Timeline</a> <a href="#how">How it was made</a></nav>'
    yield '<ul class="tiles" id="tiles"></ul>\n<p id="waiting"></p>'


def _fleet(given: Any) -> str:
    return short_name(given) if isinstance(given, str) else str(given.get("name", "of its own"))


def _charts(drawn: Mapping[str, list[str]]) -> Iterator[str]:
    yield '<section aria-labelledby="curves"><h2 id="curves">Loss and metrics</h2>'
    yield '<fieldset class="choice"><legend>against</legend>'
    for place, axis in enumerate(AXES):
        checked = " checked" if place == 0 else ""
        yield f'<label><input type="radio" name="axis" value="{axis.key}"{checked}> {escape(axis.label)}</label>'
    yield "</fieldset>"
    for place, axis in enumerate(AXES):
        figures = "".join(f"<figure>{chart}</figure>" for chart in drawn.get(axis.key, ()))
        yield f'<div class="charts" data-axis="{axis.key}"{" hidden" if place else ""}>{figures}</div>'
    yield '<p class="note" id="no-round">No round is over yet.</p>'
    yield '<details id="numbers"><summary>The same as a table</summary><div class="scroll"></div></details></section>'


def _devices() -> Iterator[str]:
    yield '<section aria-labelledby="devices"><h2 id="devices">Devices</h2>'
    yield '<form class="filter" role="search" aria-label="Devices"><label>Name <input type="search" id="named"></label>'
    yield '<label>State <select id="state"><option value="">all</option></select></label>'
    yield '<output id="count" aria-live="polite"></output></form>'
    yield '<div class="rows" id="rows" tabindex="0" role="region" aria-label="Table of devices">'
    yield f'<table aria-describedby="rows-note"><colgroup>{"<col>" * len(COLUMNS)}</colgroup><thead><tr>'
    for name, _ in COLUMNS:
        yield f'<th scope="col"><button type="button">{escape(name)}</button></th>'
    yield "</tr></thead><tbody></tbody></table></div>"
    yield (
        '<p class="note" id="rows-note">A heading sorts, a name opens the device\'s history. <b>cut</b>: blocks on the '
        "device; <b>contribution</b>: how far its last update moved the adapter (norm); <b>was last</b>: rounds in "
        "which it was the last to finish; <b>late</b>: rounds that were closed without it; <b>link</b>: its rates in "
        "its last round; <b>memory</b>: of its part, as the cost model predicts it.</p>"
    )
    yield '<div id="device" hidden tabindex="-1" role="region" aria-labelledby="device-name">'
    yield '<h3 id="device-name"></h3><button type="button" id="close">Close</button>'
    yield '<dl></dl><div class="charts"></div></div></section>'


def _timeline() -> Iterator[str]:
    yield '<section aria-labelledby="timeline"><h2 id="timeline">Timeline</h2>'
    yield '<div class="tools" role="group" aria-label="Part of the run that is shown">'
    for name, label, words in (
        ("all", "whole run", "Show the whole run"),
        ("last", "last round", "Show the last round"),
        ("in", "+", "Show half as much time"),
        ("out", "−", "Show twice as much time"),
        ("left", "◀", "Show earlier time"),
        ("right", "▶", "Show later time"),
    ):
        yield f'<button type="button" data-view="{name}" aria-label="{words}">{label}</button>'
    yield '<output id="view" aria-live="polite"></output></div><ul class="kinds" aria-label="Colours">'
    for place, kind in enumerate(KINDS):
        square = f'<svg class="dot" aria-hidden="true"><rect class="k{place}" width="12" height="12"/></svg>'
        yield f"<li>{square}{kind}</li>"
    yield '</ul><div class="lanes" id="lanes" tabindex="0" role="group" aria-describedby="lanes-note"'
    yield ' aria-label="Timeline of every machine"><ul id="lane-rows"></ul></div>'
    yield '<svg id="scale" aria-hidden="true"></svg>'
    yield (
        '<p class="note" id="lanes-note">In a row, above: what a machine computes; below: what it sends and receives. '
        "Pull over a stretch of it to see that, or use + and −, the arrow keys and 0 while the timeline has the focus. "
        "Where there are too many events, shades say which part of the time it computed (above) and transferred "
        "(below). The filter of devices holds here too.</p></section>"
    )


def _how(digest: Digest) -> Iterator[str]:
    yield '<section aria-labelledby="how"><h2 id="how">How it was made</h2><dl>'
    method, versions = digest.about.get("method", {}), digest.about.get("versions", {})
    time = (
        "Of the modelled fleet, on a clock that jumps: FLOPs over effective FLOP/s, bytes over bit/s, latency."
        if digest.simulated
        else "Of the clock of the server, since the run began; of what a device did, as the device says."
    )
    facts = {
        "Method": f"{digest.config['method']['name']}: {method.get('summary', 'not said')}. Paper: "
        f"{method.get('paper', 'none')}.",
        "Time": time,
        "Bytes": "Of every message, as it is serialised, all devices, up and down.",
        "Loss": "Training: the mean over what a round trained on. A point that stands for several rounds is their "
        "mean, with a band from the least to the most.",
        "Memory": "Predicted: weights held, adapters with gradients and moments, activations; or measured, as it says.",
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or "not said",
    }
    for term, words in facts.items():
        yield f"<dt>{escape(term)}</dt><dd>{escape(words)}</dd>"
    yield "</dl>"
    yield f"<details><summary>Configuration</summary><pre>{escape(yaml_text(digest.config))}</pre></details></section>"
