"""The main job, measured: data on disk, loaded in a shuffled order, training the reference model.

python -m benchmarks                   the sweep: words, table, picture, JSON lines
python -m benchmarks --data digits     the same path on real data, with accuracy, precision, recall and F1
python -m benchmarks --format parquet  either of them, the rows in Parquet
python -m benchmarks --format tar      the same, in tar shards, beside webdataset; --url s3: from a store
python -m benchmarks.targets           what headrace promises, each promise as a ratio to its limit
python -m benchmarks.loading           what it promises of the loader: overhead, worker processes, stalls, resume
python -m benchmarks.remote            what it promises of data in a store
python -m benchmarks.parquet           what it promises of Parquet; --peers: beside rivals
python -m benchmarks.tar               what it promises of tar shards; --peers likewise

  data       the files that are read, made once
  model      the reference model and its training step
  loaders    headrace, torch's DataLoader, and what limits both
  digits     training and scoring on the handwritten digits
  arguments  the command line
  promise    what the commands that measure promises share
  timing     whole epochs, two of a kind alternately
  limited    one reader in a process with a bound on its memory
  watch      a thread that watches its process's memory
  peers      rivals, each in a process of its own
"""
