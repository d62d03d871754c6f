"""Several methods on the same data, fleet, budget and seeds: run them all, then say what each one cost.

entry.py        `memsfl:order=fifo` -> a method with its options
metric.py       what is compared, and which way is better
comparison.py   flags -> every run that it takes, and the folder that holds them
memory.py       how much memory there is, and how much a process takes
one_run.py      a run in a process of its own
pool.py         runs -> processes, as many at once as cores and memory allow
progress.py     what a person sees meanwhile
results.py      run folders -> curves, to-target figures, mean and spread
markdown.py     results -> compare.md
page.py         results -> report.html
"""
