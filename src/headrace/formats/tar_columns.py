"""Which columns tar samples have, and what decodes the payloads of each.

By a field's last extension, unless `decode=` says otherwise:

| extension                                    | a column of                                                          |
|----------------------------------------------|----------------------------------------------------------------------|
| cls, cls2, index, inx, id                    | int64                                                                |
| txt, text, transcript                        | str                                                                  |
| json, jsn                                    | what the JSON holds                                                  |
| npy                                          | arrays, stacked where all have one layout; else lists, or padded     |
| npz                                          | dicts of arrays                                                      |
| ten, tenbin, tb                              | lists of arrays                                                      |
| mp, msg, msgpack                             | what the msgpack holds                                               |
| jpg, jpeg, png, webp, ppm, pgm, pbm, bmp, gif | RGB images, uint8 (3, height, width), stacked where they are alike   |
| pyd, pkl, pickle, pth, pt                    | refused, since reading them runs code; see `decode=`                 |
| anything else                                | bytes                                                                |

`.gz` after any of these is decompressed first. `decode=` takes, for each column, one of these extensions, "bytes",
"npy_list", the name of one of webdataset's image kinds ("rgb8", "torchrgb", "pil"), a decoder such as `hr.image(224)`,
a function of the payload's bytes, or one of webdataset's handlers, a function of a key and bytes. What such a function
does is the user's choice: `decode={"pyd": pickle.loads}`. `decode={"pth": "torch"}` loads tensors without running code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headrace.errors import ArgumentError, FormatError
from headrace.formats.field_choices import Choice, choose, kind_of
from headrace.formats.field_decoding import FieldDecoder
from headrace.formats.nearest import nearest
from headrace.formats.ragged import Pad
from headrace.formats.tar_table import FieldInfo

# What the samples have besides their fields
KEY, URL = "__key__", "__url__"
# More fields than any samples are made to have: their names hold numbers, rather.
_MOST_FIELDS = 1000


@dataclass(frozen=True, slots=True)
class TarColumn:
    """One column of tar samples.

    Attributes:
        name: What it is called.
        fields: Where a sample's payload is looked for: its first of these.
        decoder: What decodes the payloads; None for `__key__` and `__url__`, which have none.
    """

    name: str
    fields: tuple[str, ...]
    decoder: FieldDecoder | None


def plan_tar_columns(
    infos: Mapping[str, FieldInfo],
    columns: Sequence[str] | None,
    decode: Mapping[str, Any] | None = None,
    pad_to: Mapping[str, int | Pad] | None = None,
) -> list[TarColumn]:
    """What is read of samples, and how.

    Args:
        infos: The fields that samples have, in the order in which they first occur.
        columns: Names of fields, "jpg;png" for the first of several that a sample has, `__key__`, `__url__`; None for
            every field. A column of alternatives is called after the first one; spaces around them mean nothing.
        decode: By column what decodes it; a column of alternatives may be named after any of them, or in full.
        pad_to: By column the length that its arrays get along their first axis, or a `Pad` with the value for it.

    Raises:
        ArgumentError: A name is unknown, or a field can't be decoded as it is asked for.
        DependencyError: A decoder's package is missing.
    """
    asked = [_Asked.read(name, infos) for name in _names(infos, columns)]
    names = [column.name for column in asked]
    if twice := next((name for place, name in enumerate(names) if name in names[:place]), None):
        raise ArgumentError(f"columns: {twice!r} comes twice: leave one out")
    chosen = _by_column("decode", decode, asked, infos)
    pads = _by_column("pad_to", pad_to, asked, infos)
    return [_planned(column, infos, chosen, pads) for column in asked]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A column as the user named it: all alternatives, and those of them that some sample has."""

    spec: str
    alternatives: tuple[str, ...]
    fields: tuple[str, ...]

    @classmethod
    def read(cls, spec: str, infos: Mapping[str, FieldInfo]) -> "_Asked":
        if spec in (KEY, URL):
            return cls(spec, (spec,), ())
        alternatives = _alternatives("columns", spec)
        spec = ";".join(alternatives)
        fields = tuple(name for name in dict.fromkeys(alternatives) if name in infos)
        if not fields:
            raise ArgumentError(f"columns: no sample has a field {spec!r}{nearest(spec, infos, list(infos))}")
        return cls(spec, alternatives, fields)

    @property
    def name(self) -> str:
        return self.alternatives[0]

    def is_called(self, name: str) -> bool:
        return name == self.spec or name in self.alternatives


def _alternatives(option: str, spec: str) -> tuple[str, ...]:
    """The names in "jpg; png"; a name alone is taken as it is."""
    if ";" not in spec:
        return (spec,)
    names = tuple(name.strip() for name in spec.split(";"))
    if not all(names):
        raise ArgumentError(f"{option}: expected a name on each side of every ';', got {spec!r}")
    return names


def _names(infos: Mapping[str, FieldInfo], columns: Sequence[str] | None) -> list[str]:
    if columns is None:
        if len(infos) > _MOST_FIELDS:
            one, other = list(infos)[:2]
            raise ArgumentError(
                f"columns: expected names where samples have more than {_MOST_FIELDS} fields, got {len(infos)} fields: "
                f"{one!r}, {other!r}, ...; a key ends at the first dot of a member's name, so that 'a.0001.jpg' is "
                "field '0001.jpg' of sample 'a': write shards without other dots in keys, or name the fields to read"
            )
        return list(infos)
    if isinstance(columns, str) or not all(isinstance(name, str) for name in columns):
        raise ArgumentError(f"columns: expected a list of names, got {columns!r}")
    if not columns:
        raise ArgumentError(f"columns: expected at least one name{nearest('', infos, list(infos))}")
    return list(columns)


def _by_column(
    option: str, given: Mapping[str, Any] | None, asked: Sequence[_Asked], infos: Mapping[str, FieldInfo]
) -> dict[str, Any]:
    """What an option says of the columns, by their names."""
    if given is not None and not isinstance(given, Mapping):
        raise ArgumentError(f"{option}: expected a dict by column, got {given!r}")
    found: dict[str, Any] = {}
    for name, value in (given or {}).items():
        called = ";".join(_alternatives(option, name)) if isinstance(name, str) else name
        column = next((column for column in asked if column.name == called), None) or next(
            (column for column in asked if column.is_called(called)), None
        )
        if column is None and name in infos:
            raise ArgumentError(f"{option}: column {name!r} is not read: add it to columns, or leave it out here")
        if column is None:
            shown = [column.name for column in asked]
            raise ArgumentError(f"{option}: no column {name!r}{nearest(str(name), shown, shown)}")
        if not column.fields:
            raise ArgumentError(f"{option}: {name!r} is text already: leave it out here")
        if column.name in found:
            raise ArgumentError(f"{option}: column {column.spec!r} is named twice: leave one out")
        found[column.name] = value
    return found


def _planned(
    column: _Asked, infos: Mapping[str, FieldInfo], chosen: Mapping[str, Any], pads: Mapping[str, Any]
) -> TarColumn:
    if not column.fields:
        return TarColumn(column.name, (), None)
    own = [infos[field] for field in column.fields]
    given = chosen.get(column.name)
    if column.name in chosen and given is None:
        raise ArgumentError(f"decode: expected for column {column.name!r} what decodes it, got None")
    if given is None:
        _check_alike(column, own)
    pad = _pad(column.name, pads[column.name]) if column.name in pads else None
    try:
        decoder = choose(Choice(column.name, column.fields, _joined(own), given, pad))
    except FormatError as error:
        raise ArgumentError(f"column {column.name!r}: {error}") from None
    return TarColumn(column.name, column.fields, decoder)


def _check_alike(column: _Asked, own: Sequence[FieldInfo]) -> None:
    """Refuses alternatives that would make different things."""
    kinds = {
        info.name: f"gzipped {kind_of(info.name)}" if info.extension == "gz" else kind_of(info.name) for info in own
    }
    first = own[0].name
    if other := next((name for name, kind in kinds.items() if kind != kinds[first]), None):
        raise ArgumentError(
            f"columns: {column.spec!r} would hold {kinds[first]} of {first!r} and {kinds[other]} of {other!r}: "
            f'say what decodes both, decode={{{column.name!r}: "bytes"}} for one'
        )


def _joined(own: Sequence[FieldInfo]) -> FieldInfo:
    """What is known of several fields together."""
    return replace(
        own[0],
        count=sum(info.count for info in own),
        least_bytes=min(info.least_bytes for info in own),
        most_bytes=max(info.most_bytes for info in own),
        total_bytes=sum(info.total_bytes for info in own),
    )


def _pad(name: str, given: int | Pad) -> Pad:
    if isinstance(given, Pad):
        return given
    if isinstance(given, int | np.integer) and not isinstance(given, bool):
        return Pad(int(given))
    raise ArgumentError(f"pad_to: expected for column {name!r} a length or headrace.Pad(length), got {given!r}")
