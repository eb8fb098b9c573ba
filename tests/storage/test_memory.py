"""The memory that is left, told by files as they look on machines and in containers."""

import sys

import pytest

from headrace.storage.memory import available_bytes

GIB = 1 << 30
MEMINFO = "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\nHugePages_Total: 0\n"
STAT_V1 = f"cache 1\ntotal_inactive_file {GIB}\ntotal_active_file {GIB}\n"
STAT_V2 = f"anon 1\nactive_file {GIB}\ninactive_file {GIB}\nshmem {GIB}\n"


@pytest.fixture
def left(tmp_path):
    def in_files(files: dict[str, object]) -> int:
        for name, text in {"proc/meminfo": MEMINFO, **files}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{text}\n")
        return available_bytes(tmp_path)

    return in_files


def test_without_limits_it_is_what_the_machine_has_available(left):
    assert left({}) == 8 * GIB


def test_a_limit_of_version_2_counts_file_pages_as_free(left):
    group = "sys/fs/cgroup/jobs/mine"
    files = {f"{group}/memory.max": 4 * GIB, f"{group}/memory.current": 3 * GIB, f"{group}/memory.stat": STAT_V2}
    assert left({"proc/self/cgroup": "0::/jobs/mine", **files}) == 3 * GIB


def test_a_limit_of_version_1_counts_file_pages_as_free(left):
    group = "sys/fs/cgroup/memory/mine"
    files = {"limit_in_bytes": 4 * GIB, "usage_in_bytes": 3 * GIB, "stat": STAT_V1}
    lines = "9:cpu:/elsewhere\n8:memory:/mine\n0::/"
    assert left({"proc/self/cgroup": lines, **{f"{group}/memory.{n}": v for n, v in files.items()}}) == 3 * GIB


def test_a_group_above_may_be_the_tighter_one(left):
    files = {
        "sys/fs/cgroup/a/memory.max": 2 * GIB,
        "sys/fs/cgroup/a/memory.current": GIB,
        "sys/fs/cgroup/a/b/memory.max": "max",
        "sys/fs/cgroup/a/b/memory.current": GIB,
    }
    assert left({"proc/self/cgroup": "0::/a/b", **files}) == GIB


def test_in_a_container_that_sees_only_its_own_group_the_top_counts(left):
    files = {"sys/fs/cgroup/memory.max": 2 * GIB, "sys/fs/cgroup/memory.current": GIB}
    assert left({"proc/self/cgroup": "0::/of/the/host", **files}) == GIB


def test_where_nothing_tells_no_memory_is_counted_on(tmp_path):
    assert available_bytes(tmp_path) == 0


def test_this_machine_has_some_memory():
    assert 0 < available_bytes() < sys.maxsize
