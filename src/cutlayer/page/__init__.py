"""Pages that a browser shows and that need nothing else: the frame that all have, and the page of one run.

document.py    a title, a body, styles, scripts, data  -> one self-contained HTML file with its policy
curves.py      numbers                                 -> a chart of lines as inline SVG
thinned.py     a number per round                      -> at most so many, with the least and the most of each span
timeline.py    events                                  -> strips over the whole run, and the newest as bars
devices.py     rows, contributions, events             -> a row for each device, with its history
digest.py      what metrics.jsonl, events.jsonl and contributions.jsonl hold -> what a page shows of a run
figures.py     series                                  -> the charts of a run, for each axis
run_page.py    a digest                                -> report.html, and the page that is served
live.py        what a run tells its display            -> pieces of the page, at a pace that costs little
serving.py     pieces                                  -> server-sent events, over HTTP or TLS
session.py     an address                              -> the page beside a run, from its begin to its end
"""
