"""Several arrays in one payload, compressed payloads, and what claims to be larger than it should."""

import bz2
import gzip
import io
import struct
import zipfile

import numpy as np
import pytest
from webdataset import tenbin

from headrace.formats import PayloadError
from headrace.formats import field_archives as archives
from tests.formats.field_files import decoded, npy, npz

# -- npz --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
def test_a_npz_is_a_dict_of_its_arrays(compressed):
    payloads = [npz(compressed, a=np.arange(3) + i, b=np.zeros((2, i), ">f4")) for i in range(3)]
    values = decoded("npz", payloads)
    assert values.dtype == object
    for i, sample in enumerate(values):
        assert list(sample) == ["a", "b"]
        assert sample["a"].tolist() == [i, i + 1, i + 2]
        assert (sample["b"].dtype, sample["b"].shape) == (np.dtype(np.float32), (2, i))


def test_a_npz_whose_arrays_hold_objects_is_refused():
    payload = npz(fine=np.zeros(2), bad=np.array([{}], dtype=object))
    with pytest.raises(PayloadError, match="array 'bad': object holds Python objects, and reading them would run code"):
        decoded("npz", [payload])


def test_text_in_a_npz_is_an_array_of_text():
    names = [np.array(["é", "ab"]), np.array([b"x"]), np.array("one"), np.array(["b"], ">U1"), np.array([], "U3")]
    (found,) = decoded("npz", [npz(**{f"n{place}": own for place, own in enumerate(names)}, a=np.arange(3))])
    assert found.pop("a").tolist() == [0, 1, 2]
    assert [array.tolist() for array in found.values()] == [array.tolist() for array in names]
    assert all(array.dtype.isnative for array in found.values())


def test_text_in_a_npz_of_fewer_bytes_than_it_claims_is_refused():
    cut = npy(np.array(["ab"] * 9))[:-1]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.npy", cut)
    with pytest.raises(PayloadError, match="array 'a': "):
        decoded("npz", [stream.getvalue()])


def test_a_npz_that_claims_too_much_is_refused_before_it_is_decompressed(monkeypatch):
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *args: pytest.fail("decompressed"))
    payload = npz(True, zeros=np.zeros(1 << 16, np.uint8), more=np.zeros(1 << 16, np.uint8))
    assert len(payload) < 2000
    with pytest.raises(
        PayloadError, match=rf"a .npz of {len(payload)} bytes claims to hold 1313\d\d, more than the 1000"
    ):
        archives.read_archive(payload, 100_000)


def test_a_npz_that_holds_more_than_it_claims_is_refused():
    payload = npz(True, zeros=np.zeros(1 << 20, np.uint8))
    claimed = struct.pack("<I", (1 << 20) + 128)
    assert claimed in payload
    with pytest.raises(PayloadError, match=r"expected a .npz archive"):
        decoded("npz", [payload.replace(claimed, struct.pack("<I", 500))])


@pytest.mark.parametrize("payload", [b"", b"PK\x03\x04", npz(a=np.zeros(9))[:-30], npz(a=np.zeros(9))[:100]])
def test_damaged_archives_are_refused_with_their_place(payload):
    with pytest.raises(
        PayloadError, match=f"expected a .npz archive, got {len(payload)} bytes that fail with"
    ) as caught:
        decoded("npz", [npz(a=np.zeros(9)), payload])
    assert caught.value.place == 1


def test_a_flipped_bit_in_a_npz_is_refused():
    payload = bytearray(npz(a=np.arange(500)))
    payload[2000] ^= 4
    with pytest.raises(PayloadError, match="Bad CRC-32"):
        decoded("npz", [bytes(payload)])


def test_compressions_that_np_savez_does_not_know_are_refused():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", npy(np.zeros(9)))
    with pytest.raises(PayloadError, match=r"entry 'a.npy' is compressed in a way"):
        decoded("npz", [stream.getvalue()])


# -- tenbin -----------------------------------------------------------------------------------------------------------

ARRAYS = [np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((0, 2), np.int64), np.array([7], np.int8)]


@pytest.mark.parametrize("extension", ["ten", "tenbin", "tb"])
def test_tenbin_is_the_list_of_arrays_that_webdataset_gives(extension):
    payload = bytes(tenbin.encode_buffer(ARRAYS))
    (found,) = decoded(extension, [payload])
    for own, theirs, array in zip(found, tenbin.decode_buffer(payload), ARRAYS, strict=True):
        assert own.dtype == theirs.dtype == array.dtype
        assert own.shape == array.shape
        assert (own == theirs).all()
        assert own.flags.writeable


def test_a_single_number_in_tenbin_is_an_array_without_axes():
    """Which webdataset writes, and can't read."""
    ((found,),) = decoded("ten", [bytes(tenbin.encode_buffer([np.array(7, np.int8)]))])
    assert (found.shape, int(found)) == ((), 7)


GOOD = bytes(tenbin.encode_buffer([np.arange(100)]))


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"hello world", r"expected b'~TenBin~' at byte 0, got b'hello wo'"),
        (GOOD[:12], "at byte 0"),
        (GOOD[:80], "1 chunks"),
        (GOOD[:300], "claims 800 bytes of the"),
        (GOOD.replace(struct.pack("<q", 800), struct.pack("<q", 1 << 60)), "claims 1152921504606846976 bytes"),
        (GOOD.replace(struct.pack("<q", 800), struct.pack("<q", -1)), "claims -1 bytes"),
        (GOOD.replace(struct.pack("<q", 100), struct.pack("<q", 101)), r"'i8' \(101,\) doesn't fit its 800 bytes"),
        (GOOD.replace(struct.pack("<q", 100), struct.pack("<q", -100)), r"\(-100,\) doesn't fit"),
        (GOOD.replace(struct.pack("<q", 1), struct.pack("<q", 9)), "is none of tenbin"),
        (GOOD.replace(b"i8\0", b"O\0\0"), "an array of 'O'"),
    ],
)
def test_damaged_tenbin_is_refused(payload, said):
    with pytest.raises(PayloadError, match=said) as caught:
        decoded("ten", [GOOD, payload])
    assert caught.value.place == 1


# -- gzip -------------------------------------------------------------------------------------------------------------


def test_compressed_fields_are_decompressed_and_keep_their_names():
    texts = ["ä", "", "x" * 100_000]
    assert decoded("txt.gz", [gzip.compress(text.encode()) for text in texts]).tolist() == texts
    assert decoded("cls.gz", [gzip.compress(b"12"), gzip.compress(b"7")]).tolist() == [12, 7]
    assert decoded("bin.gz", [gzip.compress(b"raw")]).tolist() == [b"raw"]
    assert decoded("gz", [gzip.compress(b"raw")]).tolist() == [b"raw"]
    arrays = decoded("x.npy.gz", [gzip.compress(npy(np.arange(3)), mtime=0)] * 2)
    assert [array.tolist() for array in arrays] == [[0, 1, 2]] * 2


def test_decode_is_given_what_was_decompressed_and_bytes_are_as_they_lie():
    payload = gzip.compress(b"abc", mtime=0)
    assert decoded("x.gz", [payload], decode={"x.gz": bytes.upper}).tolist() == [b"ABC"]
    assert decoded("txt.gz", [payload], decode={"txt.gz": "bytes"}).tolist() == [payload]


def test_several_gzips_in_one_payload_are_one_after_the_other():
    assert decoded("txt.gz", [gzip.compress(b"a") + gzip.compress(b"b") + b"\0" * 9]).tolist() == ["ab"]


@pytest.mark.parametrize("zeros", [0, 9, 70_000, 200_000])
@pytest.mark.parametrize("lengths", [[300_000], [0, 1, 70_000], [5] * 20])
def test_gzips_longer_than_what_is_read_of_them_at_once_are_whole(lengths, zeros):
    contents = [np.random.default_rng(length).bytes(length) for length in lengths]
    payload = b"".join(gzip.compress(content) + bytes(zeros) for content in contents)
    assert archives.gunzipped(payload, sum(lengths)) == gzip.decompress(payload) == b"".join(contents)


def test_the_work_of_decompressing_grows_with_the_payload_alone(monkeypatch):
    fed = []

    class Counting:
        def __init__(self, wbits):
            self._stream = decompressobj(wbits)

        def decompress(self, payload, most_bytes):
            fed.append(len(payload))
            return self._stream.decompress(payload, most_bytes)

        def __getattr__(self, name):
            return getattr(self._stream, name)

    decompressobj = archives.zlib.decompressobj
    monkeypatch.setattr(archives.zlib, "decompressobj", Counting)
    payload = gzip.compress(np.random.default_rng(0).bytes(8 << 20), 1)
    archives.gunzipped(payload, 8 << 20)
    assert sum(fed) < 2 * len(payload)


def test_gzip_beyond_the_limit_is_refused_and_not_kept():
    bomb = gzip.compress(bytes(10_000_000))
    assert len(archives.gunzipped(bomb, 10_000_000)) == 10_000_000
    with pytest.raises(PayloadError, match=f"gzip of {len(bomb)} bytes holds more than 9999999"):
        archives.gunzipped(bomb, 9_999_999)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (gzip.compress(b"abc" * 99, mtime=0)[:-1], "it was cut"),
        (gzip.compress(b"abc" * 99, mtime=0)[:12], "it was cut"),
        (b"plain", "expected gzip, got 5 bytes that fail with error: Error -3"),
        (bz2.compress(b"abc"), "expected gzip"),
        (gzip.compress(b"abc", mtime=0) + b"junk", "expected gzip"),
        (gzip.compress(b"abc", mtime=0)[:-8] + bytes(8), "incorrect data check"),
    ],
)
def test_damaged_gzip_is_refused_with_its_place(payload, said):
    with pytest.raises(PayloadError, match=said) as caught:
        decoded("txt.gz", [gzip.compress(b"fine"), payload])
    assert caught.value.place == 1


def test_an_empty_payload_of_a_compressed_field_is_empty():
    """As Python's own gzip has it."""
    assert gzip.decompress(b"") == b""
    assert decoded("txt.gz", [b""]).tolist() == [""]
