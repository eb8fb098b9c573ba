"""Loader: batches on time.

    dataloader   DataLoader: torch's arguments (torch_arguments, workers), state and passes
    passing      one pass, as the training loop sees it
    pipeline     how its batches come about: in the caller's thread, in threads, or in worker processes
      plan         the rest of an epoch as groups of steps (grouping: how many are read together)
      reading      planned steps -> what was read of them (pool: batch memory that is used again)
      user_code    what was read -> finished batches (randomness, seeding: what the user's functions draw from)
      prefetch     threads that read ahead, in order and bounded
      process_ahead  the same with worker processes
        processes    their start and end (worker_process: one of them, seen from here; tunables: its C library)
        worker       what they are like from inside (work: what they do; worker_info, remote_errors)
        parcel       what they start with
        channel      what goes to and fro; its arrays in reused shared memory (encoding, slots)
      device       copies to an accelerator (staging: out of page-locked memory; trees: tensors in a batch)
    recorder     what takes how long -> stats -> advice in words, and a progress_bar
    watchdog     what hanging threads wait for; forks: where a loader may be used

A pass is driven by the consumer: each `next()` plans ahead (arithmetic), hands groups of steps to threads or processes,
and takes the oldest finished batch. With `num_workers=0` all happens in the consumer's own thread. Threads suit
headrace's sources, whose reading holds no lock of the interpreter's; processes suit the user's Python.
"""

from headrace.loader.dataloader import DataLoader

__all__ = ["DataLoader"]
