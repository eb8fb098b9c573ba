"""Datasets: where an order and a source meet, and the only place that knows torch.utils.data, ranks and workers.

arrays       ArrayDataset, NumpyDataset: map-style
parquet      ParquetDataset: map-style
tar          TarDataset: an IterableDataset over samples that are map-style too
  mapstyle   what they share: samples, batches at once, select, take, split
  views      parts of a source as sources
  splits     random parts, drawn from all samples or from each block
  collate    whole batches through torch's own DataLoader
  batches    columns as tensors; samples out of batches
iterable     IterableView: the same samples as an IterableDataset that splits itself
  passes     which epoch a pass is, agreed upon by worker processes
sampler      OrderSampler: our order for torch's own DataLoader
normalize    fit_normalizer: mean and standard deviation of columns
schedule     Schedule: order, steps and progress over one source; what every face drives
skipping     SampleReader: reads around samples that fail
read_ahead   announced: which samples a source is told of before they are read
world        which rank this process is
  second_split   what is split over ranks is refused where Accelerate would split it again
"""

from headrace.datasets.arrays import ArrayDataset, NumpyDataset
from headrace.datasets.batches import VALID, BatchForm
from headrace.datasets.iterable import IterableView
from headrace.datasets.mapstyle import MapDataset
from headrace.datasets.normalize import Normalizer, fit_normalizer
from headrace.datasets.sampler import OrderSampler

__all__ = [
    "VALID",
    "ArrayDataset",
    "BatchForm",
    "IterableView",
    "MapDataset",
    "Normalizer",
    "NumpyDataset",
    "OrderSampler",
    "fit_normalizer",
]
