"""A program of two ranks that runs the checks of several frameworks and writes what each rank saw, a file for each."""

import gc
import importlib
import json
import os
import sys
import traceback
from pathlib import Path

import torch.distributed

if __name__ == "__main__":
    rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(folder / "store"), 2), rank=rank, world_size=2
    )
    for name in sys.argv[2:]:
        module = importlib.import_module(f"tests.integrations.with_{name}")
        gc.freeze()  # the Trainer collects garbage, and the frameworks' modules are a lot to look through
        (folder / name).mkdir(exist_ok=True)
        for check, run in module.checks(folder / name).items():
            try:
                seen = run()
            except BaseException:
                (folder / f"{name}.{check}.{rank}.error").write_text(traceback.format_exc())
                raise
            (folder / f"{name}.{check}.{rank}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()
