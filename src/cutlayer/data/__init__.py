"""Data: from a file, a hub name or the built-in reviews to batches, and ways to spread it over devices.

source.py    a name                -> tables of rows, train and validation
reviews.py   a seed                -> the built-in rows
readers.py   a file                -> rows: JSON and CSV, or Parquet
rows.py      rows, by column: what all the others know of a table
tasks.py     rows and a tokenizer  -> samples: tokens, labels, loss weights
spread.py    classes or a column   -> which samples each device has
shares.py    rows of one device     -> a JSONL file that it reads them from again
batches.py   samples               -> an endless, resumable stream of length-bucketed batches
"""
