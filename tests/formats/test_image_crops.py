"""Random crops by a key, images at their own size, and pixels as floats."""

import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import headrace as hr
from headrace.errors import ArgumentError
from headrace.formats import Column, image_crops
from headrace.order.hashing import hash_words
from tests.formats.field_files import encoded_image

SIDES = st.integers(1, 3000)
KEYS = st.integers(0, (1 << 64) - 1)
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def decoded(data: bytes, decoder, *keys: int) -> np.ndarray:
    out = np.empty((max(1, len(keys)), *decoder.column.shape), decoder.column.dtype)
    decoder.decode([data] * len(out), out, np.array(keys, np.uint64) if keys else None)
    return out


# -- random crops -----------------------------------------------------------------------------------------------------


@given(SIDES, SIDES, KEYS)
def test_a_random_part_lies_in_the_image_and_is_the_same_for_the_same_key(height, width, key):
    rows, columns = part = image_crops.random_part(height, width, key, SCALE, RATIO)
    assert 0 <= rows.start < rows.stop <= height
    assert 0 <= columns.start < columns.stop <= width
    assert image_crops.random_part(height, width, key, SCALE, RATIO) == part


def test_random_parts_are_distributed_as_torchvisions():
    """Area even in the scale, proportions log-even in the ratio, place even in what is left."""
    height, width = 3000, 4000
    parts = [image_crops.random_part(height, width, key, (0.1, 0.4), RATIO) for key in range(4000)]
    lengths = np.array([(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in parts])
    area = lengths.prod(axis=1) / (height * width)
    shape = np.log(lengths[:, 1] / lengths[:, 0])
    assert 0.099 < area.min() < 0.11
    assert 0.39 < area.max() < 0.401
    np.testing.assert_allclose(np.quantile(area, [0.25, 0.5, 0.75]), [0.175, 0.25, 0.325], atol=0.01)
    bound = np.log(4 / 3)
    np.testing.assert_allclose(np.quantile(shape, [0.25, 0.5, 0.75]), [-bound / 2, 0, bound / 2], atol=0.02)
    place = np.array([(rows.start, columns.start) for rows, columns in parts]) / (np.array([height, width]) - lengths)
    np.testing.assert_allclose(
        np.quantile(place, [0.25, 0.5, 0.75], axis=0), [[0.25] * 2, [0.5] * 2, [0.75] * 2], atol=0.03
    )
    assert abs(np.corrcoef(np.stack([area, shape, *place.T]))[np.triu_indices(4, 1)]).max() < 0.06


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10)])
def test_where_no_part_of_the_ratio_fits_the_middle_is_taken(height, width):
    part = image_crops.random_part(height, width, 1, (1.0, 1.0), RATIO)
    if height < width:
        assert part == (slice(0, 10), slice(493, 506))
    else:
        assert part == (slice(493, 506), slice(0, 10))


def test_draws_are_those_of_the_keyed_hash_of_the_order():
    for key in (0, 1, 12345, (1 << 64) - 1):
        for counter in (0, 3, 39):
            expected = int(hash_words(key, counter)[0]) >> 11
            assert image_crops._draw(key, counter) == expected * 2.0**-53


def test_random_parts_stay_the_same_in_every_release():
    parts = [image_crops.random_part(375, 500, key, SCALE, RATIO) for key in (0, 7)]
    assert [(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in parts] == [
        (31, 275, 108, 369),
        (112, 365, 57, 286),
    ]


def test_a_random_crop_is_its_part_stretched_to_the_size():
    data = encoded_image(90, 70)
    decoder = hr.image((32, 40), "random_resized_crop", "hwc")
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    keys = list(range(20))
    for key, found in zip(keys, decoded(data, decoder, *keys), strict=True):
        part = pixels[image_crops.random_part(70, 90, key, SCALE, RATIO)]
        expected = np.asarray(Image.fromarray(part).resize((40, 32), Image.Resampling.BILINEAR))
        assert abs(found.astype(int) - expected).max() <= 1


def test_a_random_crop_from_a_reduced_jpeg_shows_the_same_part():
    """Slopes of colours tell where a pixel comes from: a crop from a smaller decode is off by a pixel of that."""
    data = encoded_image(1600, 1200, "JPEG")
    decoder = hr.image(64, "random_resized_crop", scale=(0.5, 1.0))
    pixels = decoded(data, decoder, *range(8)).astype(float)
    for key, found in enumerate(pixels):
        rows, columns = image_crops.random_part(1200, 1600, key, (0.5, 1.0), RATIO)
        red, green = found[0].mean(axis=0), found[1].mean(axis=1)
        left, right = (columns.start * 255 / 1600, columns.stop * 255 / 1600)
        top, bottom = (rows.start * 255 / 1200, rows.stop * 255 / 1200)
        np.testing.assert_allclose([red[0], red[-1]], [left, right], atol=5)
        np.testing.assert_allclose([green[0], green[-1]], [top, bottom], atol=5)


def test_without_keys_every_sample_has_key_0():
    data = encoded_image(90, 70)
    decoder = hr.image(32, "random_resized_crop")
    assert (decoded(data, decoder) == decoded(data, decoder, 0)).all()
    assert (decoded(data, decoder, 0) != decoded(data, decoder, 1)).any()


def test_only_random_crops_use_keys():
    assert hr.image(32, "random_resized_crop").uses_keys
    assert not hr.image(32, "center_crop").uses_keys
    data = encoded_image(90, 70)
    assert (decoded(data, hr.image(32), 5) == decoded(data, hr.image(32))).all()


def test_a_whole_image_is_a_crop_where_the_scale_says_so():
    data = encoded_image(60, 60)
    decoder = hr.image(60, "random_resized_crop", scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert (decoded(data, decoder, 3) == decoded(data, hr.image(60))).all()


# -- floats, and images at their own size -----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["chw", "hwc"])
@pytest.mark.parametrize("size", [(60, 90), 32])
def test_floats_are_the_same_pixels_from_0_to_1(layout, size):
    data = encoded_image(90, 60)
    floats, octets = hr.image(size, layout=layout, dtype="float32"), hr.image(size, layout=layout)
    assert floats.column == Column(np.dtype(np.float32), octets.column.shape)
    assert (decoded(data, floats) == decoded(data, octets).astype(np.float32) / 255).all()


def test_an_image_without_a_size_is_as_large_as_it_is():
    assert not hr.image().column.is_fixed
    data = encoded_image(90, 60)
    assert (hr.image().decoded(data) == decoded(data, hr.image((60, 90)))[0]).all()
    assert hr.image(layout="hwc", dtype="float32").decoded(data).shape == (60, 90, 3)


def test_a_parquet_column_needs_images_of_one_size(tmp_path):
    table = pa.table({"image": pa.array([encoded_image(9, 9)], pa.binary())})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ArgumentError, match=r"expected a decoder to samples of one shape, hr.image\(224\)"):
        hr.ParquetDataset(tmp_path / "a.parquet", decode={"image": hr.image()})


def test_a_decoder_of_every_kind_travels_to_other_processes():
    for decoder in (hr.image(), hr.image(8, "random_resized_crop", dtype="float32", scale=(0.5, 1), ratio=(1, 2))):
        assert pickle.loads(pickle.dumps(decoder)) == decoder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mode": "center_crop"}, r'mode="center_crop" needs a size, image\(224, "center_crop"\)'),
        ({"mode": "random_resized_crop"}, "needs a size"),
        ({"size": 8, "dtype": "float64"}, 'expected dtype="uint8" or "float32", got \'float64\''),
        ({"size": 8, "scale": (0, 1)}, r"scale=\(least, largest\), numbers above 0 to 1, got \(0, 1\)"),
        ({"size": 8, "scale": (0.5, 1.5)}, "numbers above 0 to 1"),
        ({"size": 8, "scale": 0.5}, "got 0.5"),
        ({"size": 8, "ratio": (2, 1)}, r"ratio=\(least, largest\), numbers above 0, got \(2, 1\)"),
        ({"size": 8, "ratio": (1, float("inf"))}, "got .1, inf."),
        ({"size": 8, "ratio": (float("nan"), 1)}, "got .nan, 1."),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments, said):
    with pytest.raises(ArgumentError, match=said):
        hr.image(**arguments)
