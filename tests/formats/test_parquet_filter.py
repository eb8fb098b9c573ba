"""Conditions on rows: what they refer to, which rows meet them, and that no row group with such rows is passed over."""

import datetime as dt
import functools
import itertools
import operator
import pickle
import random
import re
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.errors import ArgumentError
from headrace.formats.parquet_files import open_parquet
from headrace.formats.parquet_filter import RowFilter, vocabulary
from headrace.storage import Store

SCHEMA = pa.schema(
    {
        "id": pa.int64(),
        "score": pa.float64(),
        "text": pa.string(),
        "point": pa.struct({"x": pa.int32(), "y": pa.float32()}),
        'odd ("name") x': pa.int8(),
        "id2": pa.int64(),
    }
)


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        (pc.field("id") > 3, ["id"]),
        ((pc.field("score") > 3) | (pc.field("id2") == pc.field("score")), ["score", "id2"]),
        (pc.field("point", "x") == 1, ["point"]),
        (pc.field('odd ("name") x').is_null(), ['odd ("name") x']),
        (pc.field("text") == "id2", ["text"]),
        (pc.scalar(True), []),
    ],
    ids=str,
)
def test_a_condition_refers_to_the_top_level_columns_it_needs(expression, names):
    assert RowFilter(expression, SCHEMA).referenced == names


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (pc.field("scores") > 3, "row_filter: no column 'scores': did you mean 'score'?"),
        (pc.field("zzz", "x") > 3, "row_filter: no column 'zzz'; there is 'id', 'score', "),
        (pc.field("point", "z") > 3, "row_filter: No match for FieldRef.Nested"),
        (pc.field("id"), "expected a condition, which is true or false for each row, got one that is int64: id"),
        (pc.field("text") > 3, "row_filter: Function 'greater' has no kernel matching input types (string, int8)"),
        (pc.field(0) > 3, "row_filter: expected columns by name, got one by number: (FieldPath(0) > 3)"),
        ("id > 3", "row_filter: expected a pyarrow expression, such as pyarrow.compute.field('x') > 0, got 'id > 3'"),
    ],
    ids=str,
)
def test_a_condition_that_does_not_fit_the_columns_is_refused(expression, text):
    with pytest.raises(ArgumentError, match=re.escape(text)):
        RowFilter(expression, SCHEMA)


def test_a_mask_is_false_where_the_condition_is_false_or_null():
    rows = RowFilter((pc.field("x") > 1) | (pc.field("y") == "a"), pa.schema({"x": pa.int32(), "y": pa.string()}))
    batch = pa.record_batch(
        {"y": ["a", None, "b", None], "x": pa.array([0, 5, 0, None], pa.int32()), "z": [1, 2, 3, 4]}
    )
    assert rows.mask(batch).tolist() == [True, True, False, False]
    assert rows.mask(batch.slice(1, 2)).tolist() == [True, False]
    assert rows.mask(batch.slice(0, 0)).tolist() == []
    assert rows.mask(batch).dtype == np.bool_


def test_a_mask_of_many_rows_keeps_their_order():
    numbers = np.random.default_rng(0).integers(0, 100, 300_000)
    mask = RowFilter(pc.field("x") > 50, pa.schema({"x": pa.int64()})).mask(pa.record_batch({"x": numbers}))
    assert np.array_equal(mask, numbers > 50)


def test_a_condition_on_no_column_holds_for_all_rows_or_for_none():
    batch = pa.record_batch({"x": [1, 2]})
    assert RowFilter(pc.scalar(True), batch.schema).mask(batch).tolist() == [True, True]
    assert RowFilter(pc.scalar(False), batch.schema).mask(batch).tolist() == [False, False]


def test_a_condition_that_pyarrow_cannot_print_is_as_good_as_any():
    expression = pc.field("y") == "\U0010ffff" * 30
    schema = pa.schema({"x": pa.string(), "y": pa.string()})
    assert RowFilter(expression, schema).referenced == ["y"]
    with pytest.raises(ArgumentError, match="no column 'y'"):
        RowFilter(expression, pa.schema({"x": pa.string()}))


def test_a_condition_that_has_no_value_for_a_row_says_so():
    batch = pa.record_batch({"x": [1, 0]})
    rows = RowFilter(pc.divide(pc.scalar(6), pc.field("x")) > 1, batch.schema)
    with pytest.raises(ArgumentError, match="row_filter: divide by zero: "):
        rows.mask(batch)


def test_a_condition_can_be_pickled():
    rows = pickle.loads(pickle.dumps(RowFilter(pc.field("x").isin([1, 2]), pa.schema({"x": pa.int64()}))))
    assert rows.mask(pa.record_batch({"x": [2, 3]})).tolist() == [True, False]


def opened(path, table, **options):
    pq.write_table(table, path, **options)
    return open_parquet(str(path), Store(), paths_of=lambda schema: schema.names)


@pytest.mark.parametrize(
    ("expression", "matching"),
    [
        (pc.field("number") < 5, [True, False, False]),
        (pc.field("number") == 15, [False, True, False]),
        (pc.field("unsigned") >= pa.scalar(2**63 + 20, pa.uint64()), [False, False, True]),
        (pc.field("text") >= "t25", [False, False, True]),
        (pc.field("real") > 19.5, [False, False, True]),
        (pc.field("real") != -1.0, [True, True, True]),
        (pc.field("day") < dt.date(2024, 1, 5), [True, False, False]),
        (pc.field("time") > pa.scalar(dt.datetime(2024, 1, 25), pa.timestamp("s")), [False, False, True]),
        (pc.field("holes").is_null(), [True, False, True]),
        (pc.field("holes").is_valid(), [True, True, False]),
        ((pc.field("number") < 5) & (pc.field("number") > 25), [False, False, False]),
        ((pc.field("number") < 5) | (pc.field("text") == "t29"), [True, False, True]),
        (pc.field("flag"), [True, False, True]),
    ],
    ids=str,
)
def test_row_groups_are_passed_over_where_statistics_exclude_a_match(tmp_path, expression, matching):
    table = pa.table(
        {
            "number": pa.array(range(30), pa.int32()),
            "unsigned": pa.array([2**63 + i for i in range(30)], pa.uint64()),
            "text": [f"t{i:02}" for i in range(30)],
            "real": np.arange(30.0),
            "day": [dt.date(2024, 1, 1) + dt.timedelta(i) for i in range(30)],
            "time": pa.array([dt.datetime(2024, 1, 1 + i) for i in range(30)], pa.timestamp("s")),
            "holes": pa.array([None, *range(19), *[None] * 10]),
            "flag": [i // 10 != 1 for i in range(30)],
        }
    )
    files = opened(tmp_path / "x.parquet", table, row_group_size=10)
    rows = RowFilter(expression, files.schema)
    assert rows.matching(files).tolist() == matching


@pytest.mark.parametrize(
    "expression",
    [
        ~(pc.field("x") > 0.5),
        pc.field("x") != 1.0,
        pc.is_nan(pc.field("x")),
        ~(pc.field("x") == 1.0),
        pc.field("x").is_null(nan_is_null=True),
        ~((pc.field("x") >= 1.0) & (pc.field("y") < 9.0)),
        pc.field("x").isin(pa.array([float("nan"), 7.0])),
    ],
    ids=str,
)
def test_a_row_group_whose_statistics_say_nothing_of_nan_may_match_what_nan_does(tmp_path, expression):
    table = pa.table({"x": [1.0, float("nan"), 1.0], "y": [2.0, 2.0, float("nan")]})
    files = opened(tmp_path / "x.parquet", table)
    rows = RowFilter(expression, files.schema)
    assert rows.mask(table.to_batches()[0]).any()
    assert rows.matching(files).tolist() == [True]


def test_row_groups_without_rows_are_no_row_groups(tmp_path):
    schema = pa.schema({"x": pa.int64()})
    with pq.ParquetWriter(tmp_path / "x.parquet", schema) as writer:
        for values in ([1], [], [5], [3]):
            writer.write_table(pa.table({"x": pa.array(values, pa.int64())}))
    files = open_parquet(tmp_path / "x.parquet", Store(), paths_of=lambda schema: schema.names)
    assert files.group_number.tolist() == [0, 2, 3]
    assert RowFilter(pc.field("x") > 2, files.schema).matching(files).tolist() == [False, True, True]


def test_files_are_passed_over_by_their_partition_columns(tmp_path):
    for year in (2023, 2024, "__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / f"year={year}").mkdir()
        pq.write_table(pa.table({"x": [1, 2]}), tmp_path / f"year={year}" / "a.parquet")
    files = open_parquet(tmp_path, Store(), paths_of=lambda schema: schema.names)
    assert files.partitions["year"].to_pylist() == [2023, 2024, None]
    assert RowFilter(pc.field("year") > 2023, files.schema).matching(files).tolist() == [False, True, False]
    assert RowFilter(pc.field("year").is_null(), files.schema).matching(files).tolist() == [False, False, True]
    assert (
        RowFilter((pc.field("year") > 2023) & (pc.field("x") > 2), files.schema).matching(files).tolist() == [False] * 3
    )


NAN, INF = float("nan"), float("inf")
DAY = dt.date(2024, 2, 29)
# Few values, so that rows match, and all that statistics are silent or wrong about.
VALUES = {
    "int": (pa.int64(), [-(2**63), -1, 0, 1, 2, 2**63 - 1]),
    "small": (pa.int8(), [-128, 0, 1, 127]),
    "unsigned": (pa.uint32(), [0, 1, 2**31, 2**32 - 1]),
    "float": (pa.float64(), [NAN, 0.0, -0.0, 1.0, 1.5, INF, -INF]),
    "single": (pa.float32(), [NAN, 0.0, 1.0, 2.0]),
    "text": (pa.string(), ["", "a", "b", "ab", "é" * 40, "\U0010ffff" * 30, "a" * 100, "a" * 99 + "b"]),
    "binary": (pa.binary(), [b"", b"\x00", b"\xff" * 80, b"a"]),
    "flag": (pa.bool_(), [False, True]),
    "day": (pa.date32(), [dt.date(1, 1, 1), dt.date(1970, 1, 1), DAY]),
    "day64": (pa.date64(), [dt.date(1960, 1, 1), DAY]),
    "time": (pa.timestamp("us"), [dt.datetime(1969, 1, 1), dt.datetime(2024, 1, 1, 0, 0, 0, 1)]),
    "seconds": (pa.timestamp("s"), [dt.datetime(1969, 1, 1), dt.datetime(2024, 1, 1)]),
    "zoned": (pa.timestamp("ns", "UTC"), [dt.datetime(1969, 1, 1), dt.datetime(2024, 1, 1)]),
    "clock": (pa.time64("us"), [dt.time(0), dt.time(23, 59, 59, 5)]),
    "money": (pa.decimal128(9, 2), [Decimal("-1.00"), Decimal("0.00"), Decimal("2.50")]),
    "kind": (pa.dictionary(pa.int8(), pa.string()), ["a", "b"]),
    "year": (pa.int64(), [2023, 2024]),  # a partition column
}
COMPARE = [operator.lt, operator.le, operator.eq, operator.ne, operator.ge, operator.gt]


def one_condition(rng, name):
    """A condition on one column, at random."""
    kind, values = VALUES[name]
    column, value = pc.field(name), rng.choice(values)
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    compared = rng.choice(COMPARE)(column, pa.scalar(value, kind))
    forms = [
        compared,
        compared,
        compared.is_null(),
        column.is_null(nan_is_null=pa.types.is_floating(kind)),
        column.is_valid(),
        column.isin(pa.array([value, rng.choice(values)], kind)),
    ]
    if not pa.types.is_timestamp(kind):  # pyarrow 26 mixes up units there, of columns that come back in another one
        forms.append(pc.coalesce(column, pa.scalar(value, kind)) == pa.scalar(rng.choice(values), kind))
    forms += [pc.is_nan(column), pc.is_finite(column)] if pa.types.is_floating(kind) else []
    return rng.choice(forms)


def condition(rng, names):
    expression = one_condition(rng, rng.choice(names))
    for _ in range(rng.randrange(3)):
        expression = rng.choice([operator.and_, operator.or_])(expression, one_condition(rng, rng.choice(names)))
        expression = rng.choice([expression, ~expression])
    return rng.choice([expression, ~expression])


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 2**32))
def test_no_row_group_with_a_matching_row_is_passed_over(tmp_path, seed):
    rng = random.Random(seed)
    names = rng.sample(sorted(VALUES.keys() - {"year"}), rng.randrange(1, 4))
    rows = rng.randrange(1, 13)
    columns = {}
    for name in names:
        kind, values = VALUES[name]
        some = [*rng.choices(values, k=rng.choice([1, 2, 5])), *rng.choices([None], k=rng.randrange(2))]
        columns[name] = pa.array(rng.choices(some, k=rows), kind)
    folder = tmp_path / "year=2024"
    folder.mkdir(exist_ok=True)
    pq.write_table(
        pa.table(columns),
        folder / "x.parquet",
        row_group_size=rng.randrange(1, 5),
        write_statistics=rng.choice([True, True, False, names[:1]]),
        version=rng.choice(["1.0", "2.6"]),
        store_schema=rng.random() < 0.8,
    )
    files = open_parquet(tmp_path, Store(), paths_of=lambda schema: schema.names)
    try:
        filter_ = RowFilter(condition(rng, [*names, "year"]), files.schema)
    except ArgumentError:  # without the stored schema a column comes back as another type
        return
    table = pq.read_table(folder / "x.parquet", partitioning=None)
    starts = np.append(0, np.cumsum(files.group_rows))
    may, [year] = filter_.matching(files), files.partitions["year"]
    for group, (start, stop) in enumerate(itertools.pairwise(starts)):
        rows = table.slice(start, stop - start)
        batches = rows.append_column("year", pa.repeat(year, len(rows))).to_batches()
        mask = functools.reduce(np.append, [filter_.mask(batch) for batch in batches])
        assert may[group] or not mask.any()


def test_a_vocabulary_is_sorted_and_leaves_null_out():
    assert vocabulary([pa.array(["b", None, "a"]), pa.array(["b", "é"]), pa.array([], pa.string())]) == ("a", "b", "é")
    assert vocabulary([pa.array(["y", "x", None]).dictionary_encode()]) == ("x", "y")
    assert vocabulary([pa.array([3, 1, 3])]) == (1, 3)
    assert vocabulary([]) == ()


def test_two_conditions_that_pyarrow_prints_alike_are_told_apart():
    schema = pa.schema({"x": pa.int64()})
    first, other = (pc.field("x").isin([*range(20), middle, *range(30, 50)]) for middle in (20, 21))
    assert str(first) == str(other)
    assert RowFilter(first, schema).identity != RowFilter(other, schema).identity
    assert pickle.loads(pickle.dumps(RowFilter(first, schema))).identity == RowFilter(first, schema).identity


def test_a_column_with_a_dot_in_its_name_is_not_taken_for_the_field_of_a_struct(tmp_path):
    table = pa.table({"a.b": range(30), "id": range(30), "a": [{"b": -5}] * 30})
    files = opened(tmp_path / "x.parquet", table, row_group_size=10)
    assert RowFilter(pc.field("a.b") >= 20, files.schema).matching(files).tolist() == [False, False, True]


def test_types_of_which_arrow_makes_no_empty_array_do_not_stand_in_the_way():
    tensor = pa.fixed_shape_tensor(pa.float32(), (2, 3), permutation=[1, 0])
    words = pa.list_(pa.dictionary(pa.int32(), pa.string()))
    schema = pa.schema({"x": tensor, "words": words, "id": pa.int64()})
    assert RowFilter(pc.field("id") > 1, schema).referenced == ["id"]


def test_columns_of_one_name_are_in_the_way_of_a_condition_on_them_only():
    schema = pa.schema([("x", pa.int64()), ("x", pa.int64()), ("y", pa.int64())])
    rows = pickle.loads(pickle.dumps(RowFilter(pc.field("y") > 1, schema)))
    assert rows.referenced == ["y"]
    assert rows.mask(pa.record_batch({"y": [1, 2]})).tolist() == [False, True]
    with pytest.raises(ArgumentError, match=r"row_filter: expected one column 'x', got 2: \(x > 1\)"):
        RowFilter(pc.field("x") > 1, schema)


def test_a_dotted_path_is_refused_with_the_expression_that_is_meant():
    text = r"row_filter: no column 'point\.x': give pyarrow\.compute\.field\('point', 'x'\) for the field of a struct"
    with pytest.raises(ArgumentError, match=text):
        RowFilter(pc.field("point.x") == 1, SCHEMA)


def test_columns_are_named_whose_names_differ_in_case():
    with pytest.raises(ArgumentError, match=r"row_filter: no column 'SCORE': did you mean 'score'\?"):
        RowFilter(pc.field("SCORE") > 1, SCHEMA)


def test_a_vocabulary_is_what_extension_types_and_views_hold():
    ids = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"b" * 16, b"a" * 16], pa.binary(16)))
    assert vocabulary([ids]) == (b"a" * 16, b"b" * 16)
    assert vocabulary([pa.array([True, False, None])]) == (False, True)
