"""Rivals on the same files, one file and one process each; `make peers` installs those that headrace does not need.

rival        starts a rival's process in the environment that has its package
stretch      what a rival's process does: its batches, counted for a while
huggingface  Hugging Face `datasets`, streaming the Parquet files through a shuffle buffer
litdata      LitData, on the rows converted to its format
webdataset   webdataset, the tar shards in torch's DataLoader
spdl         SPDL, the tar shards through a pipeline of threads
"""
