"""Imports go down only, the environment is read in one place, no code in data runs, and nothing happens at import."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parent.parent / "src"

# Which layers each layer may import. `headrace/__init__.py` ("headrace" here) gathers the public names, so only those
# who use the library as a user does may import it.
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "metrics": set(),
    "order": {"errors"},
    "storage": {"errors", "metrics"},
    "formats": {"errors", "metrics", "storage"},
    "datasets": {"errors", "metrics", "storage", "formats", "order"},
    "loader": {"errors", "metrics", "storage", "formats", "order", "datasets"},
}
BELOW["bench"] = BELOW["integrations"] = {*BELOW, "headrace"}
BELOW["cli"] = {*BELOW, "headrace"}
BELOW["headrace"] = set(BELOW)

# Layers that may import only these packages besides; the standard library is meant by None.
PACKAGES: dict[str, set[str] | None] = {
    "errors": None,
    "metrics": None,
    "order": {"math", "dataclasses", "typing", "collections.abc", "numpy"},
}

READS_ENVIRONMENT = ("headrace.datasets.world", "headrace.cli", "headrace.loader.tunables")  # the last passes it on
RUNS_CODE_IN_DATA = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
# What travels between a loader and the worker processes that it started is theirs alone: no file's content is unpickled
MAY_PICKLE = ("headrace.loader.encoding",)
# Methods whose names a framework has chosen
NAMED_BY_FRAMEWORKS = {"get_train_dataloader"}
FORBIDDEN_NAMES = re.compile(r"^_*get_|(^|_)(utils?|helpers?|manager)(_|$)|(Util|Helper|Manager)", re.ASCII)
LINES = 400


def layer_of(module: str) -> str:
    """The layer that `headrace.<layer>.<module>` belongs to; "headrace" for the package itself."""
    return module.split(".")[1] if "." in module else module


def imports(module: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that `module` imports, inside functions and for type checkers too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = module.split(".")[: -node.level] if node.level else []
            source = ".".join([*parent, *([node.module] if node.module else [])])
            # `from headrace import order` names a layer, `from headrace import DataLoader` the package
            layers = [alias.name for alias in node.names if source == "headrace" and alias.name in BELOW]
            yield from ((node.lineno, f"headrace.{layer}") for layer in layers)
            if len(layers) < len(node.names):
                yield node.lineno, source


def is_among(name: str, packages: set[str] | None) -> bool:
    """Whether module `name` is one of these packages or inside one (None: of the standard library)."""
    if packages is None:
        return name.partition(".")[0] in sys.stdlib_module_names
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def climbing_imports(module: str, tree: ast.AST) -> Iterator[str]:
    layer = layer_of(module)
    if layer not in BELOW:
        yield f"{module}: {layer!r} is no layer: give it its place in the ladder"
        return
    for line, name in imports(module, tree):
        where = f"{module}:{line}"
        if name.partition(".")[0] == "headrace":
            if layer_of(name) != layer and layer_of(name) not in BELOW[layer]:
                yield f"{where}: {layer} imports {name}, which is not below it"
        elif layer in PACKAGES and not is_among(name, PACKAGES[layer]):
            yield f"{where}: {layer} may not import {name}"


def environment_reads(module: str, tree: ast.AST) -> Iterator[str]:
    if is_among(module, set(READS_ENVIRONMENT)):
        return
    words = {"environ", "environb", "getenv", "getenvb", "putenv"}
    for node in ast.walk(tree):
        named = isinstance(node, ast.Attribute) and node.attr in words
        if named or (isinstance(node, ast.ImportFrom) and node.module == "os" and words & {a.name for a in node.names}):
            yield f"{module}:{node.lineno}: reads or writes the environment, a hidden argument"


def code_in_data(module: str, tree: ast.AST) -> Iterator[str]:
    for line, name in imports(module, tree):
        if name.partition(".")[0] in RUNS_CODE_IN_DATA and not is_among(module, set(MAY_PICKLE)):
            yield f"{module}:{line}: imports {name}, which runs code that data holds"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec", "compile"}:
            yield f"{module}:{node.lineno}: calls {node.func.id}"
        for keyword, safe in (("allow_pickle", False), ("weights_only", True)):
            for given in node.keywords:
                if given.arg == keyword and not (isinstance(given.value, ast.Constant) and given.value.value is safe):
                    yield f"{module}:{node.lineno}: {keyword} is not the constant {safe}"


def forbidden_names(module: str, tree: ast.AST) -> Iterator[str]:
    if FORBIDDEN_NAMES.search(module.rpartition(".")[2]):
        yield f"{module}: the name says nothing about what is inside"
    for node in ast.walk(tree):
        names_it = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if names_it and node.name not in NAMED_BY_FRAMEWORKS and FORBIDDEN_NAMES.search(node.name):
            yield f"{module}:{node.lineno}: the name {node.name} says nothing about what it does"


RULES = (climbing_imports, environment_reads, code_in_data, forbidden_names)


def modules() -> dict[str, Path]:
    """Full module name -> file, for all of the library."""
    found = {}
    for path in sorted((SOURCES / "headrace").rglob("*.py")):
        parts = path.relative_to(SOURCES).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_module_breaks_a_rule_of_the_architecture(rule):
    broken = [found for name, path in modules().items() for found in rule(name, ast.parse(path.read_text()))]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("module", "source", "text"),
    [
        ("headrace.order.steps", "from headrace.formats import Source", "order imports headrace.formats"),
        ("headrace.order.steps", "from headrace import formats", "order imports headrace.formats"),
        ("headrace.order.steps", "from headrace import errors, DataLoader", "order imports headrace"),
        ("headrace.order.steps", "def f():\n    import headrace.loader", "headrace.order.steps:2: order imports"),
        ("headrace.order.steps", "from ..loader import DataLoader", "order imports headrace.loader"),
        ("headrace.order.steps", "import torch", "order may not import torch"),
        ("headrace.order.steps", "import collections", "order may not import collections"),
        ("headrace.formats.npy", "from headrace.order import Order", "formats imports headrace.order"),
        ("headrace.storage.local", "from headrace.formats import Source", "storage imports headrace.formats"),
        ("headrace.datasets.array", "import headrace as hr", "datasets imports headrace"),
        ("headrace.loader", "from headrace.bench import Meter", "loader imports headrace.bench"),
        ("headrace.bench", "from headrace.integrations import x", "bench imports headrace.integrations"),
        ("headrace.errors", "import numpy", "errors may not import numpy"),
        ("headrace.stuff", "", "'stuff' is no layer"),
        ("headrace.loader", "import os\nos.environ['RANK']", "headrace.loader:2: reads or writes the environment"),
        ("headrace.loader", "import os as o\no.getenv('RANK')", "reads or writes the environment"),
        ("headrace.loader", "from os import environ", "reads or writes the environment"),
        ("headrace.formats.npy", "import pickle", "imports pickle, which runs code that data holds"),
        ("headrace.formats.npy", "from pickle import loads", "imports pickle, which runs code that data holds"),
        ("headrace.loader.dataloader", "import cloudpickle", "imports cloudpickle, which runs code that data holds"),
        ("headrace.formats.npy", "eval('1')", "calls eval"),
        ("headrace.formats.npy", "np.load(f, allow_pickle=True)", "allow_pickle is not the constant False"),
        ("headrace.formats.npy", "np.load(f, allow_pickle=trusted)", "allow_pickle is not the constant False"),
        ("headrace.loader", "torch.load(f, weights_only=False)", "weights_only is not the constant True"),
        ("headrace.loader.utils", "", "headrace.loader.utils: the name says nothing"),
        ("headrace.loader", "class SlotManager: ...", "the name SlotManager says nothing"),
        ("headrace.loader", "def get_rank(): ...", "the name get_rank says nothing"),
    ],
)
def test_a_module_that_breaks_a_rule_is_found_and_named(module, source, text):
    assert any(text in found for rule in RULES for found in rule(module, ast.parse(source)))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("headrace.order.order", "import math\nfrom collections.abc import Mapping\nfrom numpy.typing import NDArray"),
        ("headrace.order.order", "from headrace.errors import ArgumentError\nfrom headrace.order.steps import Steps"),
        (
            "headrace.datasets.array",
            "from headrace.order import Order\nfrom headrace.formats import Source\nimport torch",
        ),
        (
            "headrace.loader",
            "import re\nre.compile('x')\ntorch.load(f, weights_only=True)\nnp.load(f, allow_pickle=False)",
        ),
        ("headrace.loader.encoding", "import pickle\nimport cloudpickle"),
        ("headrace.datasets.world", "import os\nos.environ.get('RANK')"),
        ("headrace.cli", "import os\nimport headrace as hr\nos.environ.get('COLUMNS')"),
        ("headrace.bench.meter", "import headrace as hr\nfrom headrace.loader import DataLoader"),
        (
            "headrace.datasets.mapstyle",
            "class A:\n    def __getitem__(self, i): ...\n    def __getitems__(self, i): ...",
        ),
    ],
)
def test_a_module_that_keeps_to_the_rules_passes_them(module, source):
    assert [found for rule in RULES for found in rule(module, ast.parse(source))] == []


def test_no_file_of_the_library_has_more_than_400_lines():
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: length for name, length in lengths.items() if length > LINES} == {}


IMPORT_AND_LOOK = """
import json, sys
{before}
present = set(sys.modules)
{imports}
from threading import enumerate as threads
loaded = [name for name in sys.argv[1:] if name in sys.modules and name not in present]
print(json.dumps({{"threads": [thread.name for thread in threads()], "loaded": loaded, {result}}}))
"""
FOR_SOME = [
    "webdataset",
    "pyarrow",
    "matplotlib",
    "rich",
    "tqdm",
    "sklearn",
    "fsspec",
    "s3fs",
    "PIL",
    "simplejpeg",
]


def look_after(environment: dict[str, str], imports: str, *, before: str = "", result: str = "", names: list[str]):
    """Threads, and those of `names` that these imports loaded into a fresh process which had run `before`."""
    script = IMPORT_AND_LOOK.format(before=before, imports=imports, result=result)
    command = [sys.executable, "-W", "error", "-c", script, *names]
    return json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def test_importing_headrace_starts_no_thread_and_loads_no_other_package(environment):
    seen = look_after(environment, "import headrace", names=[*FOR_SOME, "torch", "numpy"])
    assert seen == {"threads": ["MainThread"], "loaded": []}


def test_using_every_public_name_loads_no_package_that_only_some_need(environment):
    imports = "import headrace\nfor name in headrace.__all__:\n    if name != 'ParquetDataset': getattr(headrace, name)"
    seen = look_after(environment, imports, before="import torch", names=FOR_SOME)  # torch loads tqdm where it can
    assert seen == {"threads": ["MainThread"], "loaded": []}
    parquet = look_after(environment, f"{imports}\nheadrace.ParquetDataset", before="import torch", names=FOR_SOME)
    assert parquet == {"threads": ["MainThread"], "loaded": ["pyarrow"]}


def test_importing_every_module_starts_no_thread_and_leaves_torch_as_it_is(environment):
    seen = look_after(
        environment,
        "\n".join(f"import {name}" for name in modules() if not name.endswith("__main__")),
        before="from torch.utils.data._utils.collate import default_collate_fn_map as table\nbefore = dict(table)",
        result='"table_unchanged": table == before',
        names=["webdataset", "matplotlib", "lightning", "accelerate", "transformers", "ray"],
    )
    assert seen == {"threads": ["MainThread"], "loaded": [], "table_unchanged": True}


def test_every_public_name_is_listed_and_an_unknown_one_is_an_attribute_error(environment):
    imports = "import headrace as hr\nassert set(hr.__all__) <= set(dir(hr))\nassert not hasattr(hr, 'Loader')"
    assert look_after(environment, imports, names=["torch"])["loaded"] == []
