"""Images of any kind as arrays of one size."""

import builtins
import io
import pickle
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageDraw

import headrace as hr
from headrace.errors import ArgumentError, DependencyError
from headrace.formats import ImageDecoder, PayloadError


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Slopes, shapes and fine lines."""
    y, x = np.mgrid[:height, :width]
    ground = np.stack([x * 255 // width, y * 255 // height, (x + y) * 128 // (width + height)], -1).astype(np.uint8)
    image = Image.fromarray(ground)
    draw = ImageDraw.Draw(image)
    draw.ellipse((width // 8, height // 4, width // 2, height * 3 // 4), fill=(250, 40, 90))
    draw.polygon([(width // 2, height - 2), (width - 3, height // 3), (width * 3 // 4, 3)], fill=(20, 200, 240))
    for k in range(0, height, 9):
        draw.line((0, k, width, height - k), fill=(k % 256, 255 - k % 256, 0))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decoded(data, decoder: ImageDecoder) -> np.ndarray:
    out = np.full((1, *decoder.column.shape), 99, np.uint8)
    decoder.decode([data], out)
    return out[0]


def by_pillow(data: bytes, size: tuple[int, int], mode: str = "resize") -> np.ndarray:
    """The whole image decoded and resized by Pillow, (height, width, 3), int64."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if mode == "center_crop":
        rows, columns = ImageDecoder(size, mode).taken(image.height, image.width)
        image = image.crop((columns.start, rows.start, columns.stop, rows.stop))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR)).astype(np.int64)


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and has next to no pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


# -- right pixels -----------------------------------------------------------------------------------------------------

KINDS = {
    "jpeg": encoded(picture(500, 375), "JPEG", quality=90),
    "jpeg, small": encoded(picture(90, 60), "JPEG"),
    "jpeg, progressive": encoded(picture(300, 400), "JPEG", progressive=True),
    "jpeg, grey": encoded(picture(400, 300, "L"), "JPEG"),
    "jpeg, cmyk": encoded(picture(400, 300, "CMYK"), "JPEG"),
    "jpeg, stored as rgb": encoded(picture(400, 300), "JPEG", keep_rgb=True),
    "png": encoded(picture(300, 200), "PNG"),
    "png, palette": encoded(picture(300, 200, "P"), "PNG"),
    "png, two colours": encoded(picture(300, 200, "1"), "PNG"),
    "png, grey": encoded(picture(300, 200, "L"), "PNG"),
    "png, grey and alpha": encoded(picture(300, 200, "LA"), "PNG"),
    "png, alpha": encoded(picture(300, 200, "RGBA"), "PNG"),
    "webp": encoded(picture(300, 200), "WEBP"),
    "gif": encoded(picture(300, 200), "GIF"),
    "ppm": encoded(picture(300, 200), "PPM"),
    "bmp": encoded(picture(300, 200), "BMP"),
}


@pytest.mark.parametrize("mode", ["resize", "center_crop"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_within_one_level_of_what_pillow_makes_of_it(kind, mode):
    data = KINDS[kind]
    pixels = decoded(data, hr.image((224, 192), mode, "hwc"))
    assert pixels.shape == (224, 192, 3)
    assert abs(pixels - by_pillow(data, (224, 192), mode)).max() <= 1


@pytest.mark.parametrize("mode", ["resize", "center_crop"])
@pytest.mark.parametrize("shape", [(450, 460), (1000, 900), (1800, 2401), (460, 2000)])
def test_a_jpeg_that_is_decoded_at_a_reduced_size_looks_the_same(shape, mode):
    """Fine lines differ: on average by few levels, and few pixels by much."""
    height, width = shape
    data = encoded(picture(width, height), "JPEG", quality=90)
    difference = abs(decoded(data, hr.image(224, mode, "hwc")) - by_pillow(data, (224, 224), mode))
    assert difference.mean() < 5
    assert np.percentile(difference, 99) < 48


def test_a_crop_from_a_reduced_jpeg_is_not_shifted():
    """Both halves of a picture that is its own mirror image differ equally."""
    half = np.asarray(picture(500, 900))
    data = encoded(Image.fromarray(np.concatenate([half, half[:, ::-1]], axis=1)), "JPEG", quality=95, subsampling=0)
    pixels = decoded(data, hr.image(224, "center_crop")).astype(np.int64)
    assert abs(pixels - pixels[:, :, ::-1]).mean() < 1


def test_the_layout_says_where_the_channels_are():
    data = KINDS["jpeg"]
    chw, hwc = hr.image((64, 32)), hr.image((64, 32), layout="hwc")
    assert (chw.column.shape, hwc.column.shape) == ((3, 64, 32), (64, 32, 3))
    assert chw.column.dtype == np.uint8
    assert (decoded(data, chw) == decoded(data, hwc).transpose(2, 0, 1)).all()


def test_an_image_of_the_very_size_is_not_resampled():
    image = picture(40, 30)
    assert (decoded(encoded(image, "PNG"), hr.image((30, 40), layout="hwc")) == np.asarray(image)).all()


def test_a_crop_keeps_proportions_and_takes_the_middle():
    image = np.zeros((30, 60, 3), np.uint8)
    image[:, 15:45] = 200
    data = encoded(Image.fromarray(image), "PNG")
    assert (decoded(data, hr.image(30, "center_crop")) == 200).all()
    assert (decoded(data, hr.image(30)) == 0).any()


@pytest.mark.parametrize("depth", ["png", "ppm"])
def test_16_bits_lose_the_lower_8(depth):
    grey = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
    if depth == "png":
        data = encoded(Image.fromarray(grey), "PNG")
    else:
        data = b"P5 64 64 65535\n" + grey.astype(">u2").tobytes()
    pixels = decoded(data, hr.image(64))
    assert (pixels == (grey >> 8).astype(np.uint8)).all()


def test_transparency_is_dropped_and_colours_are_kept():
    image = picture(50, 50, "RGBA")
    image.putalpha(Image.fromarray(np.zeros((50, 50), np.uint8)))
    assert (decoded(encoded(image, "PNG"), hr.image(50, layout="hwc")) == np.asarray(picture(50, 50))).all()
    palette = picture(50, 50, "P")
    see_through = encoded(palette, "PNG", transparency=bytes(256))
    assert (decoded(see_through, hr.image(50, layout="hwc")) == np.asarray(palette.convert("RGB"))).all()


def test_of_an_animation_the_first_frame_is_taken():
    first, second = picture(40, 40), Image.new("RGB", (40, 40))
    for kind in ("GIF", "WEBP", "PNG"):
        still = decoded(encoded(first, kind, **({"lossless": True} if kind == "WEBP" else {})), hr.image(40))
        moving = encoded(
            first, kind, save_all=True, append_images=[second], **({"lossless": True} if kind == "WEBP" else {})
        )
        assert abs(decoded(moving, hr.image(40)).astype(int) - still).max() <= 1


def test_an_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = picture(80, 40)
    turned, plain = encoded(image, "JPEG", exif=exif), encoded(image, "JPEG")
    assert (decoded(turned, hr.image((40, 80))) == decoded(plain, hr.image((40, 80)))).all()


@pytest.mark.parametrize("kind", ["jpeg", "jpeg, cmyk", "png"])
@pytest.mark.parametrize("payload", [bytes, bytearray, memoryview])
def test_payloads_may_lie_in_any_memory(kind, payload):
    data = KINDS[kind]
    assert (decoded(payload(data), hr.image(64)) == decoded(data, hr.image(64))).all()


def test_a_batch_is_written_in_order_into_the_array_that_is_given():
    decoder = hr.image(32)
    out = np.empty((len(KINDS), 3, 32, 32), np.uint8)
    decoder.decode(list(KINDS.values()), out)
    for row, data in zip(out, KINDS.values(), strict=True):
        assert (row == decoded(data, decoder)).all()


def test_threads_share_a_decoder():
    decoder = hr.image(48)
    with ThreadPoolExecutor(4) as pool:
        every = list(pool.map(lambda data: decoded(data, decoder), [*KINDS.values()] * 4))
    alone = [decoded(data, decoder) for data in KINDS.values()]
    assert all((found == expected).all() for found, expected in zip(every, alone * 4, strict=True))


def test_a_jpeg_that_only_pillow_forgives_is_decoded():
    """Bytes between the scan and the next marker: libjpeg warns, and everybody reads it."""
    data = KINDS["jpeg, small"]
    assert data.endswith(b"\xff\xd9")
    odd = data[:-2] + b"\0\0\0\0" + data[-2:]
    assert (decoded(odd, hr.image(32)) == decoded(data, hr.image(32))).all()


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_data_that_ends_too_early_is_refused_with_its_sizes(kind, share):
    data = KINDS[kind][: int(len(KINDS[kind]) * share)]
    with pytest.raises(
        PayloadError, match=rf"image from its {len(data)} bytes|got {len(data)} bytes that begin"
    ) as caught:
        decoded(data, hr.image(32))
    if "webp" not in kind:
        width, height = Image.open(io.BytesIO(KINDS[kind])).size
        assert f"the {width}x{height} pixels of a" in str(caught.value)


def test_a_jpeg_whose_scan_ends_before_its_end_marker_is_refused():
    data = KINDS["jpeg, small"]
    with pytest.raises(PayloadError, match=r"cannot decode the .* pixels of a JPEG image: .*premature end"):
        decoded(data[: len(data) // 2] + b"\xff\xd9", hr.image(32))


def test_any_cut_of_a_jpeg_or_png_is_refused_or_gives_all_pixels():
    for kind in ("jpeg, small", "png, two colours"):
        data = KINDS[kind]
        whole = decoded(data, hr.image(32))
        for length in [*range(0, len(data), max(1, len(data) // 150)), *range(len(data) - 16, len(data))]:
            try:
                assert (decoded(data[:length], hr.image(32)) == whole).all()
            except PayloadError:
                assert length < len(data)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "expected a JPEG, PNG, WebP, PPM, GIF or BMP image, got 0 bytes"),
        (b"hello", r"got 5 bytes that begin with b'hello'"),
        (b"\xff\xd8\xff\xe0 no jpeg at all", "got 19 bytes that begin with"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "got 47 bytes that begin with b'%!PS-Adobe-3.0 E'"),
        (encoded(picture(8, 8), "TIFF"), "bytes that begin with"),
        (b"Pf\n2 1\n-1.0\n" + bytes(8), "8 or 16 bits a channel, got floating-point numbers"),
    ],
)
def test_what_is_no_image_is_refused(data, text):
    with pytest.raises(PayloadError, match=text):
        decoded(data, hr.image(8))


def test_a_damaged_png_is_refused():
    data = bytearray(KINDS["png"])
    data[len(data) // 2] ^= 0x10
    with pytest.raises(PayloadError, match="cannot decode the 300x200 pixels of a PNG image"):
        decoded(data, hr.image(8))


def test_the_payload_that_cannot_be_decoded_is_told():
    with pytest.raises(PayloadError) as caught:
        hr.image(8).decode([KINDS["png"], KINDS["jpeg"], b"no", KINDS["png"]], np.empty((4, 3, 8, 8), np.uint8))
    assert caught.value.place == 2


@pytest.mark.parametrize("size", [(20_000, 4_000), (100_000, 100_000)])
def test_an_image_that_claims_too_many_pixels_is_refused_before_it_is_decoded(size):
    with pytest.raises(
        PayloadError, match=r"an image of 20000x4000 pixels, more than max_pixels=67108864|too many pixels"
    ):
        decoded(png_header(*size), hr.image(8))


@pytest.mark.parametrize("kind", ["jpeg", "jpeg, cmyk", "png"])
def test_the_limit_of_pixels_can_be_set(kind):
    width, height = Image.open(io.BytesIO(KINDS[kind])).size
    decoded(KINDS[kind], hr.image(8, max_pixels=width * height))
    with pytest.raises(PayloadError, match=f"{width}x{height} pixels, more than max_pixels={width * height - 1}"):
        decoded(KINDS[kind], hr.image(8, max_pixels=width * height - 1))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0,), "size of 1 or more pixels, or .height, width., got 0"),
        (((224,),), r"got \(224,\)"),
        (((224, -1),), r"got \(224, -1\)"),
        ((22.5,), "got 22.5"),
        ((True,), "got True"),
        ((224, "crop"), "mode=.*got 'crop'"),
        ((224, "resize", "nchw"), "layout=.*got 'nchw'"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments, text):
    with pytest.raises(ArgumentError, match=text):
        hr.image(*arguments)


def test_a_limit_of_no_pixels_is_refused():
    with pytest.raises(ArgumentError, match="max_pixels of 1 or more, got 0"):
        hr.image(8, max_pixels=0)


@pytest.mark.parametrize("package", ["simplejpeg", "PIL"])
def test_a_missing_package_is_named_with_the_pip_line(package, monkeypatch):
    imported = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DependencyError, match=rf'decoding images needs {package}.*pip install "headrace\[image\]"'):
        hr.image(8)


def test_a_decoder_travels_to_other_processes():
    decoder = hr.image((8, 9), "center_crop", "hwc", max_pixels=10**6)
    assert pickle.loads(pickle.dumps(decoder)) == decoder
