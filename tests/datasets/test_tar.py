"""TarDataset: a stream of samples that splits itself, for torch's DataLoader and webdataset's pipelines; by number."""

import copy
import gc
import gzip
import io
import pickle
import warnings

import numpy as np
import pytest
import torch
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

import headrace as hr
from headrace.errors import ArgumentError, ResumeError, SampleError, ShardError
from tests.datasets.parts import Workers, same
from tests.formats.tar_files import write_tar, write_webdataset

N, SHARDS = 60, 3


def array_of(i: int) -> np.ndarray:
    return np.arange(6, dtype=np.float32).reshape(2, 3) + i


def npy(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def png(height: int, width: int, value: int = 0) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def sample_of(i: int) -> dict:
    return {"__key__": f"s/{i:04}", "npy": array_of(i), "cls": i, "txt": f"é{i}", "json": {"i": i}}


def write_shards(folder, samples: int = N, shards: int = SHARDS) -> str:
    """Shards of samples by number; returns a pattern for them."""
    for shard in range(shards):
        start, stop = shard * samples // shards, (shard + 1) * samples // shards
        write_webdataset(folder / f"train-{shard:03}.tar", map(sample_of, range(start, stop)), mtime=0)
    return str(folder / f"train-{{000..{shards - 1:03}}}.tar")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def tars(shards):
    """Makes datasets over the shards."""
    return lambda columns=("npy", "cls"), **options: hr.TarDataset(shards, columns, **options)


def numbers(items) -> list[int]:
    """The samples' numbers, after making sure that what came with them belongs to them."""
    seen = []
    for item in items:
        ids = item["cls"].reshape(-1)
        if "npy" in item:
            assert torch.equal(item["npy"].reshape(-1, 2, 3)[:, 0, 0], ids.float())
        seen += ids.tolist()
    return seen


# -- what comes -------------------------------------------------------------------------------------------------------


def test_samples_are_those_that_webdataset_gives(shards, tars):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves the last shard open
        theirs = list(wds.WebDataset(shards, shardshuffle=False).decode())
        gc.collect()
    ours = list(tars(["__key__", "__url__", "npy", "cls", "txt", "json"]))
    assert len(ours) == len(theirs) == N
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine["__key__"], mine["txt"], mine["json"]) == (other["__key__"], other["txt"], other["json"])
        assert mine["__url__"] == other["__url__"]
        assert np.array_equal(mine["npy"].numpy(), other["npy"])
        assert (mine["cls"].dtype, int(mine["cls"])) == (torch.int64, other["cls"])


def test_batches_are_tensors_and_lists(shards):
    batch = next(iter(hr.TarDataset(shards, batch_size=4)))
    assert {name: type(column) for name, column in batch.items()} == {
        "cls": torch.Tensor,
        "json": list,
        "npy": torch.Tensor,
        "txt": list,
    }
    assert batch["npy"].shape == (4, 2, 3)
    assert batch["txt"] == ["é0", "é1", "é2", "é3"]


def test_tuples_where_they_are_asked_for(tars):
    x, y = next(iter(tars(as_tuple=True)))
    assert (x.shape, y.tolist()) == ((2, 3), 0)
    batch = next(iter(tars(as_tuple=True, batch_size=5)))
    assert [type(batch), *map(len, batch)] == [list, 5, 5]


def test_it_is_an_iterable_dataset_and_says_what_it_holds(tars, shards):
    dataset = tars()
    assert isinstance(dataset, IterableDataset)
    assert repr(dataset).startswith("TarDataset(TarSource(60 samples of 'npy', 'cls' in ")
    assert list(dataset.schema) == ["npy", "cls"]
    assert dataset.fingerprint == dataset.samples.fingerprint
    assert (dataset.ignored, dataset.bad_shards) == ({}, ())
    assert isinstance(dataset.counts(), dict)


# -- order, ranks and workers -----------------------------------------------------------------------------------------


@given(st.data(), st.integers(1, 3), st.integers(0, 3), st.booleans())
def test_an_epoch_gives_each_sample_once_over_any_ranks_and_workers(shards, data, world_size, num_workers, batched):
    batch_size = data.draw(st.integers(1, 9)) if batched else None
    if world_size > 1 and 0 < N % ((batch_size or 1) * world_size) < world_size:
        return
    seen = []
    for rank in range(world_size):
        dataset = hr.TarDataset(
            shards, ["npy", "cls"], batch_size=batch_size, shuffle=True, rank=rank, world_size=world_size
        )
        seen += numbers(Workers(dataset, num_workers, base_seed=1).run())
    assert sorted(seen) == list(range(N))


def test_batches_are_those_of_headraces_own_loader(tars):
    options = {"batch_size": 7, "shuffle": True, "shuffle_window": 20, "seed": 3}
    assert same(list(tars(**options)), list(hr.DataLoader(tars(), **options)))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize(
    "workers",
    [
        {},
        {"num_workers": 2, "multiprocessing_context": "fork"},
        {"num_workers": 2, "multiprocessing_context": "spawn", "persistent_workers": True},
        {"num_workers": 3, "persistent_workers": True},
    ],
    ids=["none", "fork", "spawn", "persistent"],
)
def test_torchs_loader_gives_the_same_epochs_with_any_workers(tars, workers):
    options = {"batch_size": 7, "shuffle": True, "seed": 3}
    expected = tars(**options)
    loader = DataLoader(tars(**options), batch_size=None, **workers)
    assert len(loader) == 9
    for _ in range(2):
        assert same(list(loader), list(expected))


def test_torchs_own_batching_takes_single_samples(tars):
    loader = DataLoader(tars(shuffle=True), batch_size=8, num_workers=2)
    for _ in range(2):
        assert sorted(numbers(loader)) == list(range(N))
    assert same(next(iter(DataLoader(tars(), batch_size=8))), next(iter(tars(batch_size=8))))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("bad", [(), (1, 4)])
def test_torchs_own_batches_have_one_form_whatever_was_read_together(monkeypatch, tmp_path, bad, num_workers):
    monkeypatch.setattr("headrace.datasets.iterable._SAMPLES_AT_ONCE", 7)
    members = []
    for i in range(30):
        members += [(f"{i:02}.cls", b"x" if i in bad else b"%d" % i), (f"{i:02}.json", b'{"i": %d}' % i)]
        members.append((f"{i:02}.npy", npy(np.zeros(i % 3))))
    dataset = hr.TarDataset(write_tar(tmp_path / "a.tar", members), on_error="skip")
    batches = list(DataLoader(dataset, batch_size=5, num_workers=num_workers))
    assert sorted(numbers({"cls": batch["cls"]} for batch in batches)) == [i for i in range(30) if i not in bad]
    for batch in batches:
        ids = batch["cls"].tolist()
        assert batch["json"] == [{"i": i} for i in ids]
        assert [len(array) for array in batch["npy"]] == [i % 3 for i in ids]


def test_a_run_goes_on_under_another_world_size_and_batch_size_with_the_rest_once(tars):
    first = [tars(batch_size=5, shuffle=True, seed=9, rank=rank, world_size=2) for rank in range(2)]
    passes = [iter(dataset) for dataset in first]
    seen = numbers(next(passing) for _ in range(3) for passing in passes)
    state = first[0].state_dict()
    assert state == first[1].state_dict()
    for rank in range(3):
        resumed = tars(batch_size=4, rank=rank, world_size=3, drop_last=False)
        resumed.load_state_dict(state)
        loader = DataLoader(resumed, batch_size=None, num_workers=2)
        seen += numbers(loader)
    assert sorted(seen) == list(range(N))


def test_its_state_is_that_of_headraces_loader_and_of_copies_of_the_shards(tars, tmp_path):
    dataset = tars(batch_size=7, shuffle=True)
    passing = iter(dataset)
    seen = numbers([next(passing), next(passing)])
    moved = hr.TarDataset(write_shards(tmp_path), ["npy", "cls"])
    loader = hr.DataLoader(moved, batch_size=3)
    loader.load_state_dict(dataset.state_dict())
    assert sorted(seen + numbers(loader)) == list(range(N))


def test_a_state_of_other_shards_is_refused(tars, tmp_path):
    other = hr.TarDataset(write_shards(tmp_path, N + 1))
    with pytest.raises(ResumeError, match="the dataset is not the one"):
        other.load_state_dict(tars().state_dict())


def test_set_epoch_chooses_the_epoch(tars):
    dataset = tars(batch_size=7, shuffle=True)
    epochs = [numbers(dataset), numbers(dataset)]
    dataset.set_epoch(0)
    assert numbers(dataset) == epochs[0] != epochs[1]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda view: pickle.loads(pickle.dumps(view))], ids=["copy", "pickle"]
)
def test_a_copy_is_a_run_of_its_own(tars, copied):
    dataset = tars(batch_size=7, shuffle=True)
    list(dataset)
    other = copied(dataset)
    assert numbers(other) == numbers(dataset)
    assert same(other.samples[3], dataset.samples[3])


# -- length -----------------------------------------------------------------------------------------------------------


def test_its_length_is_its_batches_or_without_a_batch_size_its_samples_on_this_rank(tars):
    for options, length in [
        ({}, 60),
        ({"rank": 1, "world_size": 3}, 20),
        ({"batch_size": 7}, 9),
        ({"batch_size": 7, "drop_last": True}, 8),
        ({"batch_size": 7, "rank": 1, "world_size": 2}, 5),
        ({"global_batch_size": 9, "rank": 1, "world_size": 2}, 7),
    ]:
        dataset = tars(**options)
        assert len(dataset) == len(list(dataset)) == length
    assert len(DataLoader(tars(), batch_size=8)) == 8


# -- headrace's loader ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 4},
        {"shuffle": False},
        {"seed": 0},
        {"drop_last": True},
        {"rank": 0, "world_size": 1},
        {"on_error": "skip"},
    ],
    ids=str,
)
def test_options_for_the_order_are_refused_by_headraces_loader_which_takes_them_itself(tars, options):
    with pytest.raises(ArgumentError, match=f"got one with {', '.join(f'{name}=' for name in options)}") as caught:
        hr.DataLoader(tars(**options), batch_size=4)
    assert "give them to headrace.DataLoader; or iterate over this dataset with torch's DataLoader" in str(caught.value)


def test_a_subclass_with_an_iteration_of_its_own_is_refused_by_headraces_loader(shards):
    class Doubled(hr.TarDataset):
        def __iter__(self):
            return (sample["cls"] * 2 for sample in super().__iter__())

    dataset = Doubled(shards, ["cls"])
    assert [int(y) for y in DataLoader(dataset, batch_size=None)] == list(range(0, 2 * N, 2))
    with pytest.raises(ArgumentError, match=r"got .*Doubled, which has an __iter__ of its own"):
        hr.DataLoader(dataset)


def test_samples_that_ranks_cannot_share_evenly_are_refused_unless_the_loader_plans(tars, monkeypatch):
    with pytest.raises(ArgumentError, match="the last step would hold 4 samples for 7 ranks"):
        tars(shuffle=True, rank=0, world_size=7)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "7")
    dataset = tars()
    for use in (len, list, lambda dataset: dataset.state_dict(), lambda dataset: dataset.set_epoch(1)):
        with pytest.raises(ArgumentError, match="the last step would hold 4 samples for 7 ranks") as caught:
            use(dataset)
        assert "pad_last" not in str(caught.value)
    assert len(hr.DataLoader(dataset, batch_size=4, drop_last=True)) == 2
    assert len(dataset.samples) == N


# -- by number --------------------------------------------------------------------------------------------------------


def test_samples_are_a_map_style_dataset_in_file_order(tars):
    samples = tars().samples
    assert len(samples) == N
    assert numbers([samples[17], samples[-1], samples[[3, 1, 3]]]) == [17, 59, 3, 1, 3]
    assert numbers(DataLoader(samples, batch_size=8)) == list(range(N))
    assert numbers(samples.select([5, 2])[i] for i in range(2)) == [5, 2]
    parts = samples.split({"train": 0.8, "val": 0.2}, seed=1)
    assert sorted(numbers([parts["train"][:], parts["val"][:]])) == list(range(N))
    stream = parts["val"].to_iterable_dataset(batch_size=5, shuffle=True)
    assert sorted(numbers(stream)) == sorted(numbers([parts["val"][:]]))


def test_a_sample_is_found_by_its_key(tars):
    dataset = tars()
    assert numbers([dataset.samples[dataset.find("s/0041")]]) == [41]
    with pytest.raises(KeyError, match="s/9999"):
        dataset.find("s/9999")


# -- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path):
    """Eight samples: 2 holds no number, 5 lacks its text."""
    members = []
    for i in range(8):
        members.append((f"{i}.cls", b"x" if i == 2 else b"%d" % i))
        members += [] if i == 5 else [(f"{i}.txt", b"t%d" % i)]
    return write_tar(tmp_path / "a.tar", [*members, ("README", b"hello")])


def test_a_payload_that_cannot_be_decoded_is_an_error_that_names_its_member(damaged):
    for options in ({}, {"batch_size": 4}):
        with pytest.raises(SampleError, match=r"cls: .*\n  sample 2: member '2\.cls' of .*a\.tar at byte "):
            list(hr.TarDataset(damaged, ["cls"], **options))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_it_is_left_out_where_it_is_to_be_skipped_as_is_a_sample_that_lacks_a_column(damaged, num_workers):
    options = {"allow": ["missing_fields"], "on_error": "skip"}
    dataset = hr.TarDataset(damaged, ["cls", "txt"], batch_size=4, **options)
    batches = list(DataLoader(dataset, batch_size=None, num_workers=num_workers))
    assert [batch["cls"].tolist() for batch in batches] == [[0, 1, 3], [4, 6, 7]]
    assert [batch["txt"] for batch in batches] == [["t0", "t1", "t3"], ["t4", "t6", "t7"]]
    assert dataset.skipped == 2
    assert sorted(numbers(DataLoader(hr.TarDataset(damaged, **options), num_workers=num_workers))) == [0, 1, 3, 4, 6, 7]


def test_a_sample_that_lacks_a_column_is_an_error_at_once_unless_that_is_allowed(damaged):
    with pytest.raises(ShardError, match="txt"):
        hr.TarDataset(damaged)
    with pytest.raises(SampleError, match="the sample has no such field\n  sample 5: '5' in "):
        list(hr.TarDataset(damaged, ["txt"], allow=["missing_fields"]))


def test_members_of_no_sample_are_counted(damaged):
    assert hr.TarDataset(damaged, allow=["missing_fields"]).ignored["no_field"] == 1


def test_a_bad_shard_is_an_error_or_is_left_out_and_listed(shards, tmp_path):
    pattern = write_shards(tmp_path)
    shard = tmp_path / "train-001.tar"
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(ShardError, match="train-001"):
        hr.TarDataset(pattern)
    dataset = hr.TarDataset(pattern, ["cls"], allow=["bad_shards"])
    assert sorted(numbers(dataset)) == [*range(20), *range(40, 60)]
    assert [name.rpartition("/")[2] for name, _ in dataset.bad_shards] == ["train-001.tar"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"on_error": "ignore"}, "on_error: expected"),
        ({"batch_size": 0}, "batch_size: expected"),
        ({"shuffle": "all"}, "shuffle"),
        ({"pad_last": True}, "pad_last: expected a batch_size with it"),
        ({"as_tuple": 1}, "as_tuple: expected True or False, got 1"),
        ({"store": hr.Store(), "storage_options": {}}, "expected store= or storage_options=, got both"),
        ({"compressed": "never"}, "compressed: expected"),
        ({"columns": ["clss"]}, "clss"),
    ],
)
def test_arguments_that_cannot_work_are_refused(tars, options, text):
    with pytest.raises(ArgumentError, match=text):
        tars(**options)


# -- compressed shards ------------------------------------------------------------------------------------------------


@pytest.fixture
def compressed(tmp_path):
    write_shards(tmp_path)
    paths = []
    for path in sorted(tmp_path.glob("*.tar")):
        paths.append(f"{path}.gz")
        (tmp_path / paths[-1]).write_bytes(gzip.compress(path.read_bytes()))
    return paths


def test_shards_that_are_streamed_come_in_file_order_and_are_not_to_be_shuffled(compressed, tars):
    dataset = hr.TarDataset(compressed, ["npy", "cls"], batch_size=7, compressed="stream")
    assert same(list(dataset), list(tars(batch_size=7)))
    assert numbers(hr.DataLoader(dataset.samples, batch_size=7, num_workers=2)) == list(range(N))
    refused = 'shuffle: expected False with compressed="stream", which reads shards in file order, got '
    for shuffle in (True, "global", "window"):
        with pytest.raises(ArgumentError, match=refused):
            hr.TarDataset(compressed, compressed="stream", shuffle=shuffle)
        with pytest.raises(ArgumentError, match=refused) as caught:
            hr.DataLoader(hr.TarDataset(compressed, compressed="stream").samples.take(9), shuffle=shuffle)
    assert 'give compressed="cache" and a Store(cache_dir=...)' in str(caught.value)


def test_shards_that_are_decompressed_into_the_cache_are_shuffled_as_plain_ones(compressed, tars, tmp_path):
    store = hr.Store(cache_dir=tmp_path / "cache", cache_bytes=256 << 20)
    dataset = hr.TarDataset(compressed, ["npy", "cls"], batch_size=7, shuffle=True, store=store)
    assert sorted(numbers(dataset)) == list(range(N))
    assert sorted(numbers(DataLoader(dataset, batch_size=None, num_workers=2))) == list(range(N))


# -- images -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Ten images of different sizes: a gradient from left to right, so that a crop shows where it is from."""
    path = tmp_path_factory.mktemp("images") / "i.tar"
    members = []
    for i in range(10):
        sink = io.BytesIO()
        pixels = np.linspace(0, 255, 40 + i).astype(np.uint8)[None, :, None].repeat(30, 0).repeat(3, 2)
        Image.fromarray(pixels).save(sink, "PNG")
        members += [(f"{i}.cls", b"%d" % i), (f"{i}.png", sink.getvalue())]
    return write_tar(path, members)


def test_images_of_one_size_are_a_tensor(images):
    batch = next(iter(hr.TarDataset(images, ["png"], batch_size=10, decode={"png": hr.image(16)})))
    assert (batch["png"].dtype, batch["png"].shape) == (torch.uint8, (10, 3, 16, 16))


def test_images_at_their_own_size_are_single_samples_for_a_pipeline_or_a_transform(images):
    widths = [40 + i for i in range(10)]
    assert [sample["png"].shape[-1] for sample in hr.TarDataset(images)] == widths
    loader = hr.DataLoader(hr.TarDataset(images), 5, transform=lambda sample: {"width": sample["png"].shape[-1]})
    assert [batch["width"].tolist() for batch in loader] == [widths[:5], widths[5:]]


def crops(items) -> dict[int, list]:
    return {
        int(i): crop.tolist()
        for item in items
        for i, crop in zip(item["cls"].reshape(-1), item["png"].reshape(-1, 3, 8, 8), strict=True)
    }


def test_random_crops_depend_on_seed_epoch_and_sample_alone(images):
    def dataset(**options):
        return hr.TarDataset(images, decode={"png": hr.image(8, mode="random_resized_crop")}, **options)

    view = dataset(batch_size=3, shuffle=True, seed=5)
    first, second = crops(view), crops(view)
    assert all(first[i] != second[i] for i in range(10))
    for other in (dataset(seed=5), dataset(batch_size=4, seed=5)):
        assert [crops(other), crops(Workers(other, 2, base_seed=1).run())] == [first, second]
    loader = hr.DataLoader(dataset(), batch_size=6, num_workers=2, seed=5)
    assert [crops(loader), crops(loader)] == [first, second]
    assert crops(dataset(seed=6))[0] != first[0]


def test_random_access_draws_one_crop_for_each_sample(images):
    samples = hr.TarDataset(images, decode={"png": hr.image(8, mode="random_resized_crop")}).samples
    drawn = crops([samples[:]])
    assert crops([samples[i] for i in range(10)]) == drawn
    assert len({str(crop) for crop in drawn.values()}) > 5


# -- webdataset -------------------------------------------------------------------------------------------------------


def test_a_webdataset_pipeline_takes_it_as_its_source(tars):
    columns = ["__key__", "npy", "cls"]
    pipeline = wds.DataPipeline(
        tars(columns, shuffle=True, seed=1),
        wds.map(lambda sample: {**sample, "npy": sample["npy"] * 2}),
        wds.to_tuple("__key__", "npy", "cls"),
    )
    got = list(pipeline)
    expected = list(tars(columns, shuffle=True, seed=1))
    assert [(key, int(y)) for key, _, y in got] == [(sample["__key__"], int(sample["cls"])) for sample in expected]
    assert all(torch.equal(x, sample["npy"] * 2) for (_, x, _), sample in zip(got, expected, strict=True))


def test_its_loader_with_workers_gives_each_sample_once(tars):
    pipeline = wds.DataPipeline(tars(shuffle=True), wds.batched(8))
    loader = wds.WebLoader(pipeline, batch_size=None, num_workers=2)
    seen = [int(y) for batch in loader for y in batch["cls"]]
    assert sorted(seen) == list(range(N))
