"""report.html: the whole comparison on one page that needs nothing else, no network, no library (`page/document.py`).

`page.css` and `page.js` beside this file are put into it. Colours are the page's (`s0` to `s7`, dashed from the ninth
method on), so it can be dark or light and can be printed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from xml.etree import ElementTree as ET

from cutlayer.comparing.findings import findings
from cutlayer.comparing.results import MethodFigures, Point, Results, Stat
from cutlayer.comparing.tables import NOT_REACHED, NOTHING, Cell, Table, budget_table, plain, target_table, whole_bytes
from cutlayer.fleet.profile import Fleet
from cutlayer.page.curves import BYTES, FLOPS, SECONDS, Curve, Units, curves_svg
from cutlayer.page.document import html_page, short_name
from cutlayer.reading import counted, yaml_text
from cutlayer.report.gantt import gantt_svg
from cutlayer.report.human import human_bytes, human_flops, human_seconds
from cutlayer.types import Event

HERE = Path(__file__).parent
MOST_ROWS = 12  # devices in a Gantt chart

CHARTS: tuple[tuple[str, str, Units], ...] = (
    ("virtual_seconds", "time of the fleet", SECONDS),
    ("bytes", "bytes sent, both ways", BYTES),
    ("flops", "FLOPs of all devices", FLOPS),
)


def report_html(results: Results, fleet: Fleet, rounds: Mapping[str, Sequence[Event]], command: str) -> str:
    """The whole page.

    Args:
      results: the figures.
      fleet: the machines.
      rounds: by label, the events of one round of each method.
      command: what a person types to get this.
    """
    body = "\n".join(
        [
            *_head(results, fleet),
            *_failed(results),
            *_findings(results),
            *_curves(results),
            *_table(target_table(results), results),
            *_table(budget_table(results), results),
            *_memory(results),
            *_gantt(results, fleet, rounds),
            *_how(results, fleet, command),
        ]
    )
    return html_page(
        _title(results),
        body,
        styles=[(HERE / "page.css").read_text(encoding="utf-8")],
        scripts=[(HERE / "page.js").read_text(encoding="utf-8")],
        data={"points": [_tips(method, results.metric) for method in results.methods]},
        more_policy="; style-src-attr 'unsafe-inline'",  # the lengths of bars
    )


# ------------------------------------------------------------------ what it is


def _title(results: Results) -> str:
    labels = [method.label for method in results.methods]
    return ", ".join(labels) if len(labels) < 4 else f"{len(labels)} methods compared"


def _head(results: Results, fleet: Fleet) -> Iterator[str]:
    shared, seeds = results.shared, results.seeds
    data, train = shared["data"], shared["train"]
    yield f"<h1>{escape(_title(results))}</h1>"
    facts = [
        f"{short_name(shared['model']['name'])} on {short_name(data['path'])}, spread {data['spread']}",
        f"{_fleet_name(fleet)}, {len(fleet.devices)} device{'s' if len(fleet.devices) > 1 else ''}",
        f"{counted(train['rounds'], 'round')} of {counted(train['local_steps'], 'step')}, batch {train['batch_size']}",
        "one seed" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}",
    ]
    yield f'<p class="lead">{escape(" · ".join(facts))}</p>'


def _failed(results: Results) -> Iterator[str]:
    """Says which runs are missing, and with them their methods."""
    if not results.failed:
        return
    yield '<div class="failed"><p>Runs that failed; their methods are left out, as a mean needs every seed:</p><ul>'
    for name, problem in results.failed.items():
        yield f"<li><b>{_breakable(name)}</b> {escape(problem)}</li>"
    yield "</ul></div>"


def _fleet_name(fleet: Fleet) -> str:
    return f"fleet {fleet.name}"


# ------------------------------------------------------------------ what came out


def _findings(results: Results) -> Iterator[str]:
    if len(results.methods) < 2:
        return
    yield '<ul class="tiles">'
    for finding in findings(results):
        colour = "" if finding.method is None else _colour(finding.method)
        yield (
            f'<li class="{colour}"><span class="what">{escape(finding.what)}</span> '
            f'<span class="figure">{escape(finding.figure)}</span> '
            f'<span class="who" title="{escape(finding.who)}">{_breakable(finding.who)}</span> '
            f'<span class="than">{_breakable(finding.than)}</span></li>'
        )
    yield "</ul>"


def _colour(place: int) -> str:
    """The classes of the method at this place."""
    return f"s{place % 8}" + (" again" if place >= 8 else "")


def _named(place: int, label: str) -> str:
    """A method's name with its colour before it."""
    return f'<span class="{_colour(place)} swatch"></span>{_breakable(label)}'


def _breakable(label: str) -> str:
    """A label that goes to the next line between its options first."""
    return re.sub("([:,])", r"\1<wbr>", escape(label, quote=False))


# ------------------------------------------------------------------ curves


def _curves(results: Results) -> Iterator[str]:
    yield f"<h2>{escape(_capital(results.metric))} against what it cost</h2>"
    band = " Lines are means over seeds, bands reach from the lowest seed to the highest."
    note = f"One point per evaluation; point at a line to read it.{band if len(results.seeds) > 1 else ''}"
    yield f'<p class="note">{note}</p>'
    yield '<div class="legend">'
    for index, method in enumerate(results.methods):
        yield (
            f'<button type="button" data-series="{index}" aria-pressed="true">{_named(index, method.label)}</button>'
        )
    yield '</div>\n<div class="charts">'
    for key, title, units in CHARTS:
        chart = curves_svg(
            [_curve(method, key) for method in results.methods],
            title=f"{results.metric} of each method against {title}",
            x_title=title,
            units=units,
            y_title=results.metric,
            target=results.target,
        )
        drawn = ET.tostring(chart, encoding="unicode")
        yield f"<figure><figcaption>{escape(_capital(title))}</figcaption>{drawn}</figure>"
    yield "</div>"


def _finite(method: MethodFigures) -> list[tuple[Point, Stat]]:
    """The evaluations that a line can have: those with a number from every seed."""
    return [pair for pair in zip(method.curve, method.band, strict=True) if pair[1].mean is not None]


def _curve(method: MethodFigures, key: str) -> Curve:
    """The mean line and its band."""
    finite = _finite(method)
    return Curve(
        method.label,
        [getattr(point.spent, key) for point, _ in finite],
        [around.mean or 0.0 for _, around in finite],
        [around.low or 0.0 for _, around in finite],
        [around.high or 0.0 for _, around in finite],
    )


def _tips(method: MethodFigures, metric: str) -> list[str]:
    """The text on each point of the method's lines."""
    return [_tip(method.label, metric, point, around) for point, around in _finite(method)]


def _tip(label: str, metric: str, point: Point, around: Stat) -> str:
    spent, value = point.spent, plain(around.mean or 0.0)
    if around.low != around.high:
        value += f" ({plain(around.low or 0.0)} to {plain(around.high or 0.0)})"
    when = f"after round {spent.round:g}" if spent.round else "before training"
    cost = [human_seconds(spent.virtual_seconds), whole_bytes(spent.bytes), human_flops(spent.flops)]
    return f"{label}, {when}\n{metric} {value}\n{', '.join(cost)}"


# ------------------------------------------------------------------ tables and bars


def _table(table: Table | None, results: Results) -> Iterator[str]:
    if table is None:
        return
    yield f"<h2>{escape(table.title)}</h2>"
    if len(results.seeds) > 1:
        yield '<p class="note">Mean ± sample standard deviation over seeds. ★ is the best mean.</p>'
    yield '<div class="scroll"><table><thead><tr>'
    yield "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns) + "</tr></thead><tbody>"
    for place, (label, *cells) in enumerate(table.rows):
        row = f'<th scope="row">{_named(place, label.text)}</th>'
        yield f"<tr>{row}{''.join(map(_cell, cells))}</tr>"
    yield "</tbody></table></div>"


def _cell(cell: Cell) -> str:
    kind = "best" if cell.best else "missing" if cell.text in (NOT_REACHED, NOTHING) else "figure"
    spread = f"<small>{escape(cell.spread)}</small>" if cell.spread else ""
    return f'<td class="{kind}"><span>{escape(cell.text)}</span>{spread}</td>'


def _memory(results: Results) -> Iterator[str]:
    yield "<h2>Peak memory</h2>"
    yield (
        '<p class="note">Predicted by the cost model for the longest batches: the most of any round and any seed. Not '
        "measured.</p>"
    )
    yield '<div class="memory">'
    methods = results.methods
    yield from _bars("On the server", [(method.label, method.server_bytes, "") for method in methods])
    most = [(method.label, method.device_bytes, method.device) for method in methods]
    yield from _bars("On the device that needs most", most)
    yield "</div>"


def _bars(title: str, rows: Sequence[tuple[str, int, str]]) -> Iterator[str]:
    """A bar for each label: its bytes, and a word behind them."""
    most = max(num_bytes for _, num_bytes, _ in rows) or 1
    yield f'<section><h3>{title}</h3><div class="bars">'
    for place, (label, num_bytes, rest) in enumerate(rows):
        yield (
            f'<span class="who">{_breakable(label)}</span><span class="track">'
            f'<span class="bar {_colour(place)}" style="width:{50 * num_bytes / most:.1f}%"></span>'
            f'{human_bytes(num_bytes)} <span class="rest">{escape(rest)}</span></span>'
        )
    yield "</div></section>"


# ------------------------------------------------------------------ one round of each


def _gantt(results: Results, fleet: Fleet, rounds: Mapping[str, Sequence[Event]]) -> Iterator[str]:
    yield "<h2>One round of each</h2>"
    names = [device.name for device in fleet.devices]
    shown = [names[index * len(names) // MOST_ROWS] for index in range(MOST_ROWS)] if len(names) > MOST_ROWS else names
    some = f" {len(shown)} of {len(names)} devices are drawn." if len(shown) < len(names) else ""
    yield (
        f'<p class="note">The last round with seed {results.seeds[0]}, each at its own scale of time. In a row, above: '
        f"what a machine computes; below: what it sends and receives; grey: it waits.{some}</p>"
    )
    for place, method in enumerate(results.methods):
        events = [event for event in rounds[method.label] if event.who in shown or event.who == fleet.server.name]
        if not any(event.what != "wait" for event in events):
            events = list(rounds[method.label])
        chart = gantt_svg(events, round=events[0].round, order=names)
        yield (
            f'<div class="round"><h3>{_named(place, method.label)}</h3><div class="scroll gantt">{chart}</div></div>'
        )


# ------------------------------------------------------------------ how it was made


def _how(results: Results, fleet: Fleet, command: str) -> Iterator[str]:
    shared = results.shared
    every = shared["train"]["eval_every"]
    yield "<h2>How these numbers were made</h2>\n<dl>"
    facts = {
        "Same for all": "Seed by seed, every method had the same first adapter, the same rows on each device in the "
        "same order, the same rounds, steps and batches (where the method does not choose them itself), and the same "
        f"evaluation, every {'round' if every == 1 else f'{every} rounds'}.",
        "Losses, metrics": "Real: the model was trained. Of the whole model with the averaged adapter.",
        "Time": "Of the modelled fleet, on a clock that jumps: FLOPs over effective FLOP/s, bytes over bit/s, latency; "
        "who waits for whom follows from the program itself.",
        "Bytes": "Of every message, as it is serialised, all devices, up and down.",
        "Device FLOPs": "Forward and backward, as torch's counter counts them for the work that each device was given.",
        "Device busy": "Seconds that devices computed, summed over devices: stands for their energy.",
        "To the target": "What had been spent at the end of the first round whose evaluation reached it. A mean is "
        "given only where every seed got there.",
        "Memory": "Predicted: weights held, adapters with gradients and moments, activations; not measured.",
        "Fleet": f"{fleet.name}: {len(fleet.devices)} devices of "
        f"{_range([d.effective_flops / 1e12 for d in fleet.devices])} effective TFLOP/s, "
        f"{_range([d.memory_bytes / 2**30 for d in fleet.devices])} GiB, "
        f"{_range([d.up_bits_per_second / 1e6 for d in fleet.devices])} Mbit/s up; server "
        f"{fleet.server.effective_flops / 1e12:.3g} TFLOP/s. Source: {fleet.source}",
        "Seeds": ", ".join(map(str, results.seeds)),
        "Versions": ", ".join(f"{name} {version}" for name, version in results.versions.items()),
    }
    for term, words in facts.items():
        yield f"<dt>{escape(term)}</dt><dd>{escape(words)}</dd>"
    yield "</dl>"
    yield f"<p>Again, or to go on after a stop:</p><pre>{escape(command)}</pre>"
    options = {method.label: {"name": method.method, **method.options} for method in results.methods}
    content = yaml_text({"methods": options, "shared": shared})
    yield f"<details><summary>Methods and shared configuration</summary><pre>{escape(content)}</pre></details>"


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
