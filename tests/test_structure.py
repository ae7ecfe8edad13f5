"""The house rules that a machine can check: which way imports run, and that configurations name no script."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.conftest import ROOT

# package (or subpackage) -> project packages that it may import
ALLOWED = {
    "common": {"common"},
    "ldm/targets.py": {"common"},
    "ldm/modules": {"common", "ldm.modules", "ldm.targets"},
    "ldm/models": {"common", "ldm.models", "ldm.modules", "ldm.targets"},
    "ldm": {"common", "ldm"},
    "cldm": {"common", "cldm", "ldm"},
    "cldm/data": {"common", "cldm.data", "ldm.training.loaders", "ldm.targets"},
    "gss": {"common", "gss"},
    "post_processing": {"common", "post_processing"},
    "evaluation": {"common", "evaluation", "segmentation"},  # what it says of images, segmentors say
    "segmentation": {"common", "segmentation"},
    "importing": {"common", "importing"},
    "web": {"common", "web", "cldm", "segmentation", "post_processing", "importing"},
    "scripts": {
        *("common", "scripts", "cldm", "ldm", "gss", "post_processing", "evaluation", "segmentation", "importing"),
        "web",
    },
}
PACKAGES = (
    *("common", "ldm", "cldm", "gss", "post_processing", "evaluation", "segmentation", "importing", "web"),
    "scripts",
)
PROJECT = (*PACKAGES, "tests", "demo")
_MM = ("mmseg", "mmengine", "mmcv")
FOREIGN = {
    "common": _MM,
    "importing": (*_MM, "torch"),
    "post_processing": _MM,
    "evaluation": _MM,
    "web": _MM,
    "ldm": ("mmseg",),
    "cldm": ("mmseg",),
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rule_for(path):
    name = path.relative_to(ROOT).as_posix()
    return max((key for key in ALLOWED if name == key or name.startswith(key + "/")), key=len, default=None)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        for name in imports(path):
            if name.split(".")[0] in PROJECT:
                allowed = ALLOWED[rule_for(path)]
                assert any(name == a or name.startswith(a + ".") for a in allowed), f"{path} imports {name}"
            assert name.split(".")[0] not in FOREIGN.get(package, ()), f"{path} imports {name}"


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/*_rule.py")), ids=lambda path: path.name)
def test_a_rule_is_numpy_alone(path):
    outside = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
    assert outside == {"numpy"}


def words_of(path):
    """Words of a file's identifiers, and its texts."""
    words, texts = set(), []
    for node in ast.walk(ast.parse(path.read_text())):
        names = [getattr(node, field, None) for field in ("id", "attr", "arg", "name", "module", "asname")]
        for name in (name for name in names if isinstance(name, str)):
            words.update(part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name))
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return words, texts


# scores of a first stage by a segmentor, which compares its classes with masks
KNOWS_MASKS = ("ldm/first_stage/evaluation.py", "ldm/first_stage/options.py")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "ldm").rglob("*.py")), ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_latent_diffusion_knows_nothing_of_tisynth(path):
    words, texts = words_of(path)
    if path.relative_to(ROOT).as_posix() not in KNOWS_MASKS:
        assert not words & {"mask", "masks", "reference", "references"}
    assert not words & {"cldm", "fusion", "tisynth"}
    assert not [text for text in texts if re.search(r"\bcldm\b|ssl_stage_model|attn0[01]", text)]


def test_no_yaml_names_a_script():
    for path in [*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("demo/**/*.yaml")]:
        assert "target: scripts" not in path.read_text() and "target: main" not in path.read_text(), path


# what is read, and what is drawn, by one piece of code: a pattern, and the files that may hold it
ONE_PLACE = {
    # the export's files run without this project, and its card shows how
    r"\bImage\.open\(|imread|imageio|tifffile": {
        "common/decoding.py",
        "cldm/diffusers_export/card.py",
        "cldm/diffusers_export/remote/pipeline.py",
    },
    # import asks it where on the map an image's pixels lie, and moves polygons there
    r"\brasterio\.open\(|import rasterio|from rasterio": {
        "common/rasters.py",
        "importing/formats/vectors.py",
        "cldm/diffusers_export/card.py",
    },
    r"\bjson\.loads?\(": {"common/schema.py"},
    r"""seed_from\([^)\n]*["']""": {"cldm/training/image_logger.py"},  # the text is the name of a record's field
}


@pytest.mark.parametrize("pattern", ONE_PLACE)
def test_what_has_one_place_is_nowhere_else(pattern):
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    places = {path.relative_to(ROOT).as_posix() for path in found if re.search(pattern, path.read_text())}
    assert places <= ONE_PLACE[pattern]


def bodies(path):
    """Functions of 6 lines or more: where each is, and its body without its docstring, its names and its texts."""
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = function.body[1 if ast.get_docstring(function) is not None else 0 :]
        if not body or body[-1].end_lineno - body[0].lineno + 1 < 6:
            continue
        names = {}
        for node in (node for part in body for node in ast.walk(part)):
            if isinstance(node, ast.Name | ast.arg):
                field = "id" if isinstance(node, ast.Name) else "arg"
                setattr(node, field, names.setdefault(getattr(node, field), f"name {len(names)}"))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                node.value = ""
        yield f"{path.relative_to(ROOT)}: {function.name}", "\n".join(map(ast.dump, body))


def test_no_function_stands_twice():
    places = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for place, body in bodies(path):
                places.setdefault(body, []).append(place)
    assert [found for found in places.values() if len(found) > 1] == []


def test_files_are_of_a_size_to_read():
    files = [path for path in ROOT.glob("*/**/*.py") if ".venv" not in path.parts]
    assert [path for path in files if len(path.read_text().splitlines()) > 400] == []


@pytest.mark.parametrize("name", ["train.sh", "inference.sh", "filter.sh", "resample.sh"])
def test_shell_entry_points_are_short_and_explain_themselves(name):
    lines = [line for line in (ROOT / name).read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 15
    said = subprocess.run(["bash", ROOT / name], capture_output=True, text=True)
    assert said.returncode == 2 and f"bash {name} " in said.stderr


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_at_once(path):
    """Names that a module imports while it is imported itself: not those within functions, or for types alone."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_module_imports_itself_by_way_of_others():
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    modules = {module_of(path): path for path in files}
    graph = {}
    for name, path in modules.items():
        found = (
            next((x for x in (full, full.rpartition(".")[0]) if x in modules), None) for full in imported_at_once(path)
        )
        graph[name] = {module for module in found if module not in (None, name)}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))
