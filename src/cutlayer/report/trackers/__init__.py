"""Trackers that a run reports to (`train.report_to`), each in a process of its own and each one small file.

reports.py      the run's side: starts the processes, hands them each round, and never waits for them
child.py        a process: reads rounds, tells its tracker, and says on one line what went wrong
tracker.py      what a tracker is
wandb.py, mlflow.py, trackio.py   the trackers

A tracker can fail, hang, print and take over signals as it likes: it is in another process, and the run goes on.
"""
