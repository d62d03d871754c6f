"""Reports of a run to people: metrics, the run folder, the device table, the live display, the Gantt chart.

This room only reads what other rooms did (`Event`, `StepRecord`, logits); nothing here changes a result.

    metrics.py     logits and losses    -> accuracy, macro_f1, loss, perplexity
    round_row.py   StepRecords          -> one line of metrics.jsonl
    run_folder.py  lines, events, text  -> files on disk that survive a kill and can be rewound
    devices.py     events, records      -> what each machine did, as rows and as a table
    gantt.py       events               -> one round as an SVG
    progress.py    events, rows         -> the live display
    summary.py     this process         -> versions, peak memory
"""
