"""Rivals on the same rows, one file and one process each, from packages that headrace does not need: `make peers`.

rival        starts a rival's process in the environment that has its package
stretch      what a rival's process does: its batches, counted for a while
huggingface  Hugging Face `datasets`, streaming the Parquet files through a shuffle buffer
litdata      LitData, on the rows converted to its format
"""
