"""Which columns samples have, what decodes each by default, and how a user says otherwise."""

import gzip
import io
import json
import pickle
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import webdataset as wds
from webdataset.writer import make_handlers

import headrace as hr
from headrace.errors import ArgumentError, DependencyError, StorageError
from headrace.formats import Column, PayloadError, field_unpacking
from headrace.formats.payloads import Payloads
from headrace.formats.tar_columns import plan_tar_columns
from headrace.formats.values import concatenate
from tests.formats.field_files import decoded, encoded_image, info, npy, npz, planned

PAYLOADS = {
    "jpg": [encoded_image(8, 8, "JPEG")],
    "cls": [b"3", b"12"],
    "seg.png": [encoded_image(8, 8)],
    "json": [b'{"a": 1}'],
    "npy": [npy(np.zeros(3))],
    "txt": [b"text"],
    "pyd": [b"."],
    "bin": [b"\0\1"],
}
INFOS = {name: info(name, payloads) for name, payloads in PAYLOADS.items()}
SAFE = {name: own for name, own in INFOS.items() if name != "pyd"}


def names(columns: list[str] | None, infos=SAFE, **options) -> list[tuple[str, tuple[str, ...]]]:
    return [(column.name, column.fields) for column in plan_tar_columns(infos, columns, **options)]


# -- which columns ----------------------------------------------------------------------------------------------------


def test_every_field_is_a_column_unless_some_are_named():
    assert names(None) == [(name, (name,)) for name in SAFE]
    assert names(["cls", "jpg"]) == [("cls", ("cls",)), ("jpg", ("jpg",))]
    assert names(["cls"], INFOS) == [("cls", ("cls",))]


def test_very_many_fields_are_read_only_by_name_since_their_names_were_keys_rather():
    frames = {f"{number:04}.cls": info("cls", [b"1"]) for number in range(1001)}
    with pytest.raises(ArgumentError, match=r"got 1001 fields: '0000.cls', '0001.cls', .* ends at the first dot"):
        names(None, frames)
    assert names(["0001.cls"], frames) == [("0001.cls", ("0001.cls",))]
    del frames["0000.cls"]
    assert len(names(None, frames)) == 1000


def test_alternatives_make_one_column_that_is_called_after_the_first():
    assert names(["jpg;seg.png", "cls"]) == [("jpg", ("jpg", "seg.png")), ("cls", ("cls",))]
    assert names(["png;jpg;jpeg"]) == [("png", ("jpg",))]


@pytest.mark.parametrize("spec", ["jpg; seg.png", " jpg ;seg.png", "jpg ;\tseg.png "])
def test_spaces_around_alternatives_mean_nothing(spec):
    assert names([spec]) == [("jpg", ("jpg", "seg.png"))]
    for name in (spec, "jpg;seg.png", "jpg ; seg.png"):
        (column,) = plan_tar_columns(SAFE, [spec], {name: hr.image(4)})
        assert column.decoder.column.shape == (3, 4, 4)


def test_keys_and_urls_are_columns_without_a_decoder():
    key, cls, url = plan_tar_columns(SAFE, ["__key__", "cls", "__url__"])
    assert (key.name, key.fields, key.decoder) == ("__key__", (), None)
    assert (url.name, url.fields, url.decoder) == ("__url__", (), None)
    assert cls.decoder is not None


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (["jpgg"], "columns: no sample has a field 'jpgg': did you mean 'jpg'"),
        (["JPG"], "no sample has a field 'JPG': did you mean 'jpg'"),
        (["a;b"], "no sample has a field 'a;b'; there is 'jpg', 'cls'"),
        ("jpg", "expected a list of names, got 'jpg'"),
        ([1], r"expected a list of names, got \[1\]"),
        ([], "expected at least one name"),
        (["jpg", "jpg"], "'jpg' comes twice"),
        (["jpg;seg.png", "jpg"], "'jpg' comes twice"),
        (["txt;json"], "'txt;json' would hold text of 'txt' and JSON of 'json': say what decodes both"),
        (["txt; json"], "'txt;json' would hold text of 'txt' and JSON of 'json': say what decodes both"),
        (["jpg;"], "columns: expected a name on each side of every ';', got 'jpg;'"),
        ([";jpg"], "columns: expected a name on each side of every ';', got ';jpg'"),
        (["jpg; ;seg.png"], "columns: expected a name on each side of every ';', got 'jpg; ;seg.png'"),
    ],
)
def test_columns_that_cannot_be_are_refused(columns, said):
    with pytest.raises(ArgumentError, match=said):
        plan_tar_columns(SAFE, columns)


def test_arrays_of_alternatives_are_stacked_where_both_are_alike():
    infos = {"a.npy": info("a.npy", [npy(np.zeros(3))]), "b.npy": info("b.npy", [npy(np.ones(3))])}
    (column,) = plan_tar_columns(infos, ["a.npy;b.npy"])
    assert column.decoder.column == Column(np.dtype(np.float64), (3,))
    infos["b.npy"] = info("b.npy", [npy(np.ones(4))])
    (column,) = plan_tar_columns(infos, ["a.npy;b.npy"])
    assert not column.decoder.column.is_fixed


# -- by extension -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extension", "payload", "kind"),
    [
        *[(extension, b"7", np.int64) for extension in ("cls", "cls2", "index", "inx", "id")],
        *[(extension, "ä\n".encode(), str) for extension in ("txt", "text", "transcript")],
        *[(extension, b'{"a": [1, null]}', object) for extension in ("json", "jsn")],
        ("npy", npy(np.arange(3)), np.int64),
        ("npz", npz(a=np.arange(3)), object),
        *[(extension, b"\0raw", bytes) for extension in ("bin", "html", "mp4", "cbor", "class", "")],
    ],
)
def test_the_last_extension_says_what_a_payload_becomes(extension, payload, kind):
    for field in (extension, f"left.{extension}"):
        column = planned(field, [payload]).decoder.column
        assert (column.dtype if column.is_fixed else column.python_type) == kind
        (found,) = decoded(field, [payload])
        expected = wds.autodecode.Decoder([]).decode({field: payload})[field] if extension != "cbor" else payload
        np.testing.assert_equal(found, expected)


def test_what_webdatasets_writer_encodes_comes_back():
    """Of the writer's encoders those whose files webdataset decodes too."""
    handlers = make_handlers()
    samples = {
        "cls": 7,
        "txt": "text",
        "json": {"a": [1.5, "b"]},
        "npy": np.arange(4.0),
        "npz": {"a": np.arange(3)},
        "ten": [np.arange(3), np.zeros((2, 2), np.float32)],
        "index": 12,
    }
    for extension, sample in samples.items():
        encoded = handlers[extension](sample)
        payload = encoded.encode() if isinstance(encoded, str) else bytes(encoded)
        np.testing.assert_equal(decoded(extension, [payload])[0], sample)


def test_objects_know_about_how_large_they_are():
    assert planned("txt", [b"a" * 10, b"a" * 30]).decoder.column.sample_bytes == 20


@pytest.mark.parametrize(
    ("field", "payload", "said"),
    [
        ("txt", b"ab\xff", r"expected text in UTF-8, got byte 0xff at 2 of 3"),
        ("json", b"{", "expected JSON, got 1 bytes that fail with JSONDecodeError"),
        ("json", b"[" * 100_000, "expected JSON, got 100000 bytes that fail with RecursionError"),
        ("json", b"", "expected JSON, got 0 bytes"),
    ],
)
def test_what_a_field_is_not_is_refused_with_its_place(field, payload, said):
    good = b"[]"
    with pytest.raises(PayloadError, match=said) as caught:
        decoded(field, [good, good, payload])
    assert caught.value.place == 2


def test_msgpack_is_what_it_holds():
    msgpack = pytest.importorskip("msgpack")
    for extension in ("mp", "msg", "msgpack"):
        assert decoded(extension, [msgpack.packb({"a": [1, b"b"]})]).tolist() == [{"a": [1, b"b"]}]
        with pytest.raises(PayloadError, match="expected msgpack, got 2 bytes"):
            decoded(extension, [b"\x92\x01"])


def test_a_missing_msgpack_is_named_with_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(DependencyError, match=r'needs msgpack.*pip install "headrace\[msgpack\]"'):
        planned("mp", [b"\x90"])
    monkeypatch.setattr(field_unpacking, "import_module", lambda name: SimpleNamespace(unpackb=len))
    assert decoded("mp", [b"\x90"]).tolist() == [1]


# -- what runs code ---------------------------------------------------------------------------------------------------


class Boom:
    def __reduce__(self):
        return print, ("ran code",)


@pytest.mark.parametrize("extension", ["pyd", "pkl", "pickle", "pth", "pt", "x.pyd", "pyd.gz"])
@pytest.mark.parametrize("columns", [None, "it"])
def test_fields_that_run_code_are_refused_when_they_are_asked_for(extension, columns, capsys):
    infos = {extension: info(extension, [pickle.dumps(Boom())]), "cls": INFOS["cls"]}
    with pytest.raises(ArgumentError, match=rf"column '{extension}': reading \..* runs code in it"):
        plan_tar_columns(infos, [extension] if columns else None)
    assert names(["cls"], infos) == [("cls", ("cls",))]
    assert capsys.readouterr().out == ""


def test_pickles_are_read_where_the_user_says_so():
    payload = pickle.dumps({"a": 1})
    assert decoded("pyd", [payload], decode={"pyd": pickle.loads}).tolist() == [{"a": 1}]
    assert decoded("pyd", [payload], decode={"pyd": "bytes"}).tolist() == [payload]
    with pytest.raises(ArgumentError, match=r"decode=\{'bin': pickle.loads\}"):
        planned("bin", [payload], decode={"bin": "pyd"})


def test_tensors_by_torch_are_read_without_running_code(tmp_path, capsys):
    torch.save({"x": torch.arange(3)}, tmp_path / "a.pth")
    (found,) = decoded("pth", [(tmp_path / "a.pth").read_bytes()], decode={"pth": "torch"})
    assert found["x"].tolist() == [0, 1, 2]
    torch.save(torch.arange(3), tmp_path / "b.pth")
    stacked = decoded("pt", [(tmp_path / "b.pth").read_bytes()] * 2, decode={"pt": "torch"})
    assert stacked.tolist() == [[0, 1, 2]] * 2
    torch.save(Boom(), tmp_path / "c.pth")
    with pytest.raises(PayloadError, match=r"expected tensors by torch.save, in plain containers") as caught:
        decoded("pth", [(tmp_path / "c.pth").read_bytes()], decode={"pth": "torch"})
    assert "weights_only" not in str(caught.value)
    assert capsys.readouterr().out == ""


def saved(value) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def deflated(archive: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as stored, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as small:
        for entry in stored.infolist():
            small.writestr(entry.filename, stored.read(entry))
    return stream.getvalue()


@pytest.mark.parametrize(
    "payload",
    [
        saved(torch.zeros(1).expand(1 << 40)),
        saved({"a": [torch.zeros(1).expand(1 << 30)]}),
        saved((torch.zeros(1, 1).expand(1 << 28, 1),) * 2),
    ],
    ids=["one", "in a dict", "shared"],
)
def test_tensors_that_show_a_few_bytes_as_many_are_refused(payload):
    with pytest.raises(PayloadError, match=rf"of {len(payload)} bytes claim to hold \d+, more than the 1073741824"):
        decoded("pth", [payload], decode={"pth": "torch"})


def test_tensors_in_an_archive_that_claims_too_much_are_refused_before_they_are_read(monkeypatch):
    payload = deflated(saved(torch.zeros(1 << 20)))
    assert len(payload) < 20_000
    assert field_unpacking._loaded(payload).shape == (1 << 20,)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("read"))
    with pytest.raises(PayloadError, match=rf"of {len(payload)} bytes claim to hold 419\d+, more than the 4000000"):
        field_unpacking._loaded(payload, 4_000_000)


def test_a_container_that_holds_itself_is_refused():
    endless = []
    endless.append(endless)
    with pytest.raises(PayloadError, match="RecursionError"):
        decoded("pth", [saved(endless)], decode={"pth": "torch"})


@pytest.mark.parametrize("shape", [(0, 1 << 63), (1 << 62, 0), (1,) * 64])
@pytest.mark.parametrize("field", ["npy", "npz", "npy.gz"])
def test_shapes_that_no_array_has_are_refused_with_their_place(field, shape):
    text = str({"descr": "<f8", "fortran_order": False, "shape": shape}).encode()
    payload = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(0 if 0 in shape else 8)
    if field == "npz":
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("a.npy", payload)
        payload = stream.getvalue()
    with pytest.raises(PayloadError, match="expected a shape ") as caught:
        decoded(field, [gzip.compress(payload) if field == "npy.gz" else payload])
    assert caught.value.place == 0


# -- decode= ----------------------------------------------------------------------------------------------------------


def test_a_column_is_decoded_as_another_extension_would_be():
    assert decoded("bin", [b"12"], decode={"bin": "cls"}).tolist() == [12]
    assert decoded("cls", [b"12"], decode={"cls": "bytes"}).tolist() == [b"12"]
    assert decoded("raw", [npy(np.arange(2))] * 2, decode={"raw": "npy"}).tolist() == [[0, 1]] * 2
    assert decoded("jpg", [b"no image"], decode={"jpg": "txt"}).tolist() == ["no image"]


@pytest.mark.parametrize("name", ["jpg", "seg.png", "jpg;seg.png"])
def test_a_column_of_alternatives_may_be_named_either_way(name):
    (column,) = plan_tar_columns(SAFE, ["jpg;seg.png"], {name: hr.image(4)})
    assert column.decoder.column.shape == (3, 4, 4)


@pytest.mark.parametrize("spec", ["bin;bin.gz", "txt.gz;txt", "gz;bin"])
def test_alternatives_of_which_some_are_compressed_need_one_decoder(spec):
    infos = {name: info(name, [b"x"]) for name in ("bin", "bin.gz", "txt", "txt.gz", "gz")}
    with pytest.raises(
        ArgumentError,
        match=rf"{spec!r} would hold (bytes|gzipped bytes|gzipped text) of .* and (bytes|gzipped bytes|text) of",
    ):
        plan_tar_columns(infos, [spec])
    (column,) = plan_tar_columns(infos, [spec], {spec: "bytes"})
    assert column.decoder.column.python_type is bytes


def test_alternatives_of_different_kinds_need_one_decoder():
    (column,) = plan_tar_columns(SAFE, ["txt;json"], {"txt": "bytes"})
    assert (column.fields, column.decoder.column.python_type) == (("txt", "json"), bytes)


@pytest.mark.parametrize(
    ("decode", "said"),
    [
        ({"cls": "bytes"}, "decode: column 'cls' is not read: add it to columns"),
        ({"jgp": "bytes"}, "decode: no column 'jgp': did you mean 'jpg'"),
        ({"jpg": "bytes", "seg.png": "bytes"}, "column 'jpg;seg.png' is named twice"),
        ({"jpg;": "bytes"}, "decode: expected a name on each side of every ';', got 'jpg;'"),
        ({"jpg": None}, "expected for column 'jpg' what decodes it, got None"),
        ({"jpg": hr.image}, r"column 'jpg': expected hr.image\(224\), or with another size, got hr.image itself"),
        ({"jpg": 7}, "expected for column 'jpg' a name such as 'npy' or 'bytes', a decoder .* got 7"),
        ({"jpg": "jgp"}, "column 'jpg': no decoder 'jgp': did you mean 'jpg'"),
        ({"__key__": "txt"}, "'__key__' is text already"),
        ("bytes", "expected a dict by column, got 'bytes'"),
    ],
)
def test_decoders_that_cannot_be_are_refused(decode, said):
    with pytest.raises(ArgumentError, match=said):
        plan_tar_columns(SAFE, ["jpg;seg.png", "__key__"], decode)


def test_a_handler_of_keys_is_refused_where_alternatives_have_different_keys():
    def handler(key: str, data: bytes) -> tuple[str, int]:
        return key, len(data)

    infos = {name: info(name, [b"ab"]) for name in ("jpg", "png", "left.jpg", "bin")}
    with pytest.raises(ArgumentError) as caught:
        plan_tar_columns(infos, ["jpg;bin;png"], {"jpg": handler})
    assert str(caught.value) == (
        "decode: column 'jpg': expected a function of bytes, since the payloads of 'bin' would come to a handler of "
        "(key, data) with the key '.jpg' too: give a function of bytes alone, or read 'jpg' and 'bin' as two columns"
    )
    for spec in ("jpg;webp", "jpg;left.jpg", "jpg"):  # of one extension
        (column,) = plan_tar_columns(infos, [spec], {spec: handler})
        assert column.decoder is not None
    (column,) = plan_tar_columns(infos, ["jpg;png"], {"jpg": len})
    assert column.decoder.decode(Payloads([b"a", b"bc"]), None, None).tolist() == [1, 2]


def test_what_functions_return_is_stacked_where_it_can_be():
    payloads = [b"123", b"456"]
    assert decoded("bin", payloads, decode={"bin": len}).dtype == np.int64
    assert decoded("bin", payloads, decode={"bin": float}).tolist() == [123.0, 456.0]
    arrays = decoded("bin", payloads, decode={"bin": lambda data: np.frombuffer(data, np.uint8)})
    assert (arrays.dtype, arrays.shape) == (np.dtype(np.uint8), (2, 3))
    tensors = decoded("bin", payloads, decode={"bin": lambda data: torch.tensor(list(data), dtype=torch.int16)})
    assert (tensors.dtype, tensors.shape) == (np.dtype(np.int16), (2, 3))
    ragged = decoded("bin", [b"1", b"23"], decode={"bin": lambda data: np.frombuffer(data, np.uint8)})
    assert [array.tolist() for array in ragged] == [[49], [50, 51]]
    brain = decoded("bin", payloads, decode={"bin": lambda data: torch.zeros(2, dtype=torch.bfloat16)})
    assert brain.dtype == object
    assert decoded("bin", payloads, decode={"bin": lambda data: 1 << 70}).tolist() == [1 << 70] * 2
    assert decoded("bin", payloads, decode={"bin": json.loads}).tolist() == [123, 456]
    assert decoded("bin", payloads, decode={"bin": lambda data: None}).tolist() == [None, None]


def test_what_a_function_raises_is_told_with_the_place():
    def picky(data: bytes) -> bytes:
        if data == b"bad":
            raise KeyError("no such thing")
        return data

    with pytest.raises(
        PayloadError, match="expected what picky decodes, got 3 bytes that fail with KeyError"
    ) as caught:
        decoded("bin", [b"good", b"bad"], decode={"bin": picky})
    assert caught.value.place == 1
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("error", [StorageError("gone"), ImportError("missing"), KeyboardInterrupt()])
def test_what_is_no_fault_of_the_payload_is_raised_as_it_is(error):
    def fails(data: bytes) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        decoded("bin", [b"good"], decode={"bin": fails})
    assert caught.value is error


def test_a_decoder_of_ones_own_is_taken():
    class Lengths:
        column = Column(np.dtype(np.int32))

        def decode(self, payloads, out):
            out[:] = [len(payload) for payload in payloads]

    (column,) = plan_tar_columns(SAFE, ["bin"], {"bin": Lengths()})
    assert column.decoder.decode(Payloads([b"a", b"bc"]), None, None).tolist() == [1, 2]


# -- values of several reads ------------------------------------------------------------------------------------------


def test_values_that_were_read_apart_are_put_together():
    a, b = np.zeros((2, 3, 4)), np.ones((1, 3, 4))
    assert concatenate([a, b]).shape == (3, 3, 4)
    c = np.ones((2, 3, 5))
    assert [row.shape for row in concatenate([a, c])] == [(3, 4), (3, 4), (3, 5), (3, 5)]
    mixed = concatenate([concatenate([a, c])[:3], b])
    assert [row.shape for row in mixed] == [(3, 4), (3, 4), (3, 5), (3, 4)]
    again = concatenate([concatenate([a, c])[:2], b])
    assert (again.dtype, again.shape) == (np.dtype(np.float64), (3, 3, 4))
    texts = [np.array(["a", "b"], object), np.array(["c"], object)]
    assert concatenate(texts).tolist() == ["a", "b", "c"]
