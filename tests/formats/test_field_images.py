"""Images by webdataset's names are what webdataset makes of them; others come at their own size, or that asked for."""

import pickle
import warnings

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image

import headrace as hr
from headrace.errors import ArgumentError
from headrace.formats import PayloadError
from headrace.formats.payloads import Payloads
from headrace.formats.webdataset_images import WEBDATASET_IMAGES
from tests.formats.field_files import decoded, encoded_image, planned

NAMES = list(wds.autodecode.imagespecs)
KINDS = {
    "jpg": encoded_image(40, 30, "JPEG"),
    "jpeg": encoded_image(40, 30, "JPEG", "L"),
    "png": encoded_image(40, 30, "PNG", "RGBA"),
    "seg.png": encoded_image(40, 30, "PNG", "P"),
    "grey.png": encoded_image(40, 30, "PNG", "L"),
    "webp": encoded_image(40, 30, "WEBP"),
    "ppm": encoded_image(40, 30, "PPM"),
    "gif": encoded_image(40, 30, "GIF"),
    "bmp": encoded_image(40, 30, "BMP"),
    "tiff": encoded_image(40, 30, "TIFF"),
}


def test_every_name_of_webdataset_is_known():
    assert list(WEBDATASET_IMAGES) == NAMES


@pytest.mark.parametrize("field", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_images_by_webdatasets_names_are_what_webdataset_gives(name, field):
    expected = wds.autodecode.Decoder([wds.imagehandler(name)]).decode({field: KINDS[field]})[field]
    (found,) = decoded(field, [KINDS[field]], decode={field: name})
    if isinstance(expected, Image.Image):
        assert isinstance(found, Image.Image)
        assert found.mode == expected.mode
    assert np.asarray(found).dtype == np.asarray(expected).dtype
    assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_images_of_one_size_are_stacked_and_others_come_one_by_one():
    same = decoded("jpg", [encoded_image(8, 6, "JPEG")] * 3)
    assert (same.dtype, same.shape) == (np.dtype(np.uint8), (3, 3, 6, 8))
    column = planned("jpg", [b"x"]).decoder.column
    assert (column.python_type, column.is_fixed) == (np.ndarray, False)
    different = decoded("png", [encoded_image(8, 6), encoded_image(5, 7)])
    assert different.dtype == object
    assert [image.shape for image in different] == [(3, 6, 8), (3, 7, 5)]
    for name, shape in (("rgb8", (6, 8, 3)), ("torchl", (6, 8)), ("rgba", (6, 8, 4))):
        assert decoded("png", [encoded_image(8, 6)] * 2, decode={"png": name}).shape == (2, *shape)
        assert decoded("png", [encoded_image(8, 6), encoded_image(5, 7)], decode={"png": name}).shape == (2,)


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "png", "webp", "ppm", "pgm", "pbm", "bmp", "gif"])
def test_images_at_their_own_size_have_the_pixels_that_are_stored(extension):
    kind = {"jpg": "JPEG", "jpeg": "JPEG", "pgm": "PPM", "pbm": "PPM"}.get(extension, extension.upper())
    data = encoded_image(41, 30, kind, {"pgm": "L", "pbm": "1"}.get(extension, "RGB"))
    (image,) = decoded(extension, [data])
    expected, _ = decoded(extension, [data] * 2, decode={extension: hr.image((30, 41))})
    assert (image == expected).all()


def test_images_of_one_size_fill_the_array_that_is_given():
    payloads = [encoded_image(40, 30, "JPEG"), encoded_image(20, 50)]
    decoder = planned("jpg", payloads, decode={"jpg": hr.image(16)}).decoder
    out = np.empty((2, 3, 16, 16), np.uint8)
    assert decoder.decode(Payloads(payloads), out, None) is out
    expected = np.empty_like(out)
    hr.image(16).decode(payloads, expected)
    assert (out == expected).all()
    assert not decoder.uses_keys


def test_random_crops_are_drawn_by_the_keys():
    payloads = [encoded_image(40, 30, "JPEG")] * 3
    decoder = planned("jpg", payloads, decode={"jpg": hr.image(16, "random_resized_crop")}).decoder
    assert decoder.uses_keys
    crops = decoder.decode(Payloads(payloads), None, np.array([5, 6, 5], np.uint64))
    assert (crops[0] == crops[2]).all()
    assert (crops[0] != crops[1]).any()


def test_images_of_own_size_may_be_floats_with_channels_last():
    (image,) = decoded("png", [encoded_image(8, 6)], decode={"png": hr.image(layout="hwc", dtype="float32")})
    assert (image.dtype, image.shape) == (np.dtype(np.float32), (6, 8, 3))
    (theirs,) = decoded("png", [encoded_image(8, 6)], decode={"png": "rgb"})
    assert (image == theirs).all()


@pytest.mark.parametrize("decode", [None, {"png": "rgb8"}, {"png": "pil"}, {"png": hr.image(8)}], ids=str)
def test_what_is_no_image_is_refused_with_its_place(decode):
    with pytest.raises(PayloadError, match=r"expected .* image, got 5 bytes that begin with b'hello'") as caught:
        decoded("png", [encoded_image(8, 8), b"hello"], decode=decode)
    assert caught.value.place == 1
    whole = encoded_image(80, 70)
    with pytest.raises(PayloadError, match="cannot decode the 80x70 pixels of a PNG image"):
        decoded("png", [whole[: len(whole) // 2]], decode=decode)


@pytest.mark.parametrize("decode", [None, {"png": "torchrgb"}, {"png": hr.image(8)}], ids=str)
def test_an_image_that_claims_too_many_pixels_is_refused(decode):
    bomb = encoded_image(8, 8)
    bomb = bomb.replace((8).to_bytes(4, "big") * 2, (9000).to_bytes(4, "big") * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries may warn of the checksum
        with pytest.raises(PayloadError, match=r"81000000 pixels|9000x9000 pixels|cannot identify|begin with"):
            decoded("png", [bomb], decode=decode)


def test_webdatasets_names_never_start_another_program():
    with pytest.raises(PayloadError, match=r"begin with b'%!PS-Adobe-3.0 E'"):
        decoded("eps", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"], decode={"eps": "pil"})


def test_webdatasets_names_say_which_formats_they_take():
    with pytest.raises(PayloadError, match=r"expected a JPEG, PNG, .* TIFF, .* or XPM image, got 5 bytes"):
        decoded("tiff", [b"hello"], decode={"tiff": "rgb8"})


def test_webdatasets_own_handlers_can_be_plugged_in():
    data = encoded_image(8, 6, "JPEG")
    (found,) = decoded("seg.jpg", [data], decode={"seg.jpg": wds.imagehandler("torchrgb8")})
    assert (torch.from_numpy(found) == wds.imagehandler("torchrgb8")(".jpg", data)).all()
    assert decoded("txt", [b"hi"], decode={"txt": wds.autodecode.basichandlers}).tolist() == ["hi"]
    own = wds.handle_extension("seg.txt", lambda data: data.decode()[::-1])
    assert decoded("seg.txt", [b"hi"], decode={"seg.txt": own}).tolist() == ["ih"]
    with pytest.raises(PayloadError, match=r"doesn't take '.txt' .it returned None.") as caught:
        decoded("txt", [b"hi"], decode={"txt": wds.imagehandler("rgb8")})
    assert caught.value.place == 0


def test_an_unknown_name_is_refused_with_one_like_it():
    with pytest.raises(ArgumentError, match="decode: column 'jpg': no decoder 'rbg8': did you mean 'rgb8'"):
        planned("jpg", [b"x"], decode={"jpg": "rbg8"})


def test_decoders_travel_to_other_processes():
    data = encoded_image(8, 6, "JPEG")
    for decode in (None, {"jpg": "torchrgb"}, {"jpg": hr.image(4)}, {"jpg": wds.imagehandler("rgb8")}):
        decoder = pickle.loads(pickle.dumps(planned("jpg", [data], decode=decode).decoder))
        assert len(decoder.decode(Payloads([data]), None, None)) == 1
