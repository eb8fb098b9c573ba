"""Loader: batches on time.

    dataloader   DataLoader: torch's arguments, state and passes
    plan         the rest of an epoch as groups of steps
    reading      planned steps -> finished batches: read, user code, skipped samples
      user_code    the user's functions, and the randomness that they may ask for
      pool         batch memory that is used again when nobody views it any more
      device       page-locked memory and copies to an accelerator
    prefetch     threads that read ahead, in order and bounded

A pass is driven by the consumer: each `next()` plans ahead (arithmetic), hands groups of steps to threads, and takes
the oldest finished batch. With `num_workers=0` the same reading happens in the consumer's own thread.
"""

from headrace.loader.dataloader import DataLoader

__all__ = ["DataLoader"]
