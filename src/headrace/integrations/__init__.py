"""Integrations: what to do in each trainer. Each module imports its own framework, when it is used.

    lightning      ResumeData: a Callback that resumes exactly            pip install "headrace[lightning]"
    accelerate     prepare, PreparedLoader                                pip install "headrace[accelerate]"
    transformers   LoaderMixin for Trainer                                pip install "headrace[transformers]"
    ray            resume, checkpoint: in a worker loop of Ray Train      pip install "headrace[ray]"
    checkpoint     LoaderState for torch.distributed.checkpoint; write_state, read_state for plain folders
      tracking     TrackedLoader: also torch's DataLoader over our order, with a state and a known end
      frameworks   how their packages and base classes are had

Whatever the trainer: samples are split over the ranks once. By us, unless it is said below that a trainer does, and
then our datasets and samplers are given `rank=0, world_size=1`. A loader asks for its rank when it is made: make it
where the process group exists, or give it `rank=` and `world_size=`.

Lightning. Give `headrace.DataLoader` to `fit`, or return it from `train_dataloader`; validation loaders too. Add
`ResumeData(loader)` to the Trainer's callbacks: without it Lightning loads the loader's state only from checkpoints
that were saved amid an epoch. With `devices` above 1 make the loaders in `setup` of a LightningDataModule. In torch's
DataLoader, an `OrderSampler` or IterableDataset of ours is left as it is; wrap that loader in a `TrackedLoader` to
resume it.

Accelerate. `prepare(accelerator, model, optimizer, loader)` of this package in the place of `accelerator.prepare(...)`,
then `accelerator.register_for_checkpointing(loader)`. What `accelerator.prepare` itself does with torch's DataLoader:
our map-style datasets it splits over the processes, in torch's order; an `OrderSampler` or IterableDataset that is
split already refuses that when the first pass begins.

transformers. `class OurTrainer(LoaderMixin, Trainer)`, with `train_loader=` a `headrace.DataLoader`. The plain Trainer
takes our map-style datasets as any others. It takes our IterableDatasets with `rank=0, world_size=1` and without a
batch size of their own, reads them in the first process and sends the others their part; it resumes them by reading
what it skips, and only within the first epoch where they have no length. For evaluation use map-style datasets.

Ray Train. Make the loader in the worker loop, where Ray's process group exists, and don't `prepare_data_loader` it;
there, `resume(loader)` and `with checkpoint(loader) as folder`.

torch.distributed.checkpoint. A `headrace.DataLoader` is `Stateful`: `save({"data": loader})`, `load({"data": loader})`,
for any number of ranks; `LoaderState(loader)` keeps the state as one entry.
"""
