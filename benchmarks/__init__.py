"""The main job, measured: data on disk, loaded in a shuffled order, training the reference model.

python -m benchmarks                   the sweep: words, table, picture, JSON lines
python -m benchmarks --data digits     the same path on real data, with accuracy, precision, recall and F1
python -m benchmarks.targets           what headrace promises, each promise as a ratio to its limit

  data       the files that are read, made once
  model      the reference model and its training step
  loaders    headrace and its peers
  digits     training and scoring on the handwritten digits
  arguments  the command line
  limited    one reader in a process with a bound on its memory
"""
