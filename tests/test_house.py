"""The house itself: what may import what, what stays light, and that what the pages print works."""

from __future__ import annotations

import ast
import contextlib
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("vqvae", "perception", "train", "demos", "benchmarks")
ABOVE = {
    "vqvae": {"perception", "train", "demos", "benchmarks", "transformers", "accelerate"},
    "perception": {"train", "demos", "benchmarks", "accelerate", "gradio"},
    "train": {"demos", "benchmarks"},
}
"""What a package must not import, anywhere in its code: vqvae <- perception <- train, demos, benchmarks."""
HEAVY = {"transformers", "gradio", "plotly", "peft", "accelerate", "datasets", "diffusers", "matplotlib", "skimage"}
MAX_ENTRIES, MAX_RECIPES = 14, 26
"""Entries of perception/ and Python files directly in train/, at most"""
MAX_NEW_MODULES = 400
"""Modules that `import perception, vqvae` may load beyond torch's; 185 when this was written."""
NOT_RUN = "<!-- not run -->"
_BLOCK = re.compile(rf"(?P<mark>{NOT_RUN}\s*\n)?^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def kept_files() -> list[Path]:
    """Files under version control, or about to be; all files outside hidden folders where there is no git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
        return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    return [p for p in ROOT.rglob("*") if p.is_file() and not any(part[0] == "." for part in p.relative_to(ROOT).parts)]


def imported(path: Path) -> set[str]:
    """First names of all modules that a file imports, inside functions too, TYPE_CHECKING blocks included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    ).stdout


def test_from_the_root_tokenizers_is_hugging_face_s_and_imports_are_light() -> None:
    said = python(
        "import sys, torch; before = set(sys.modules); import perception, vqvae; new = set(sys.modules) - before;"
        "print(len(new), *sorted({name.split('.')[0] for name in new}));"
        "import tokenizers; print(tokenizers.Tokenizer.__name__, tokenizers.__file__)"
    ).splitlines()
    count, *new = said[0].split()
    assert not HEAVY & set(new), f"import perception, vqvae loads {sorted(HEAVY & set(new))}"
    assert int(count) <= MAX_NEW_MODULES
    name, path = said[1].split(maxsplit=1)
    assert name == "Tokenizer" and Path(path).parent != ROOT / "tokenizers"


def test_public_names_are_loaded_when_they_are_used() -> None:
    said = python(
        "import sys, perception; assert 'perception.vocabulary' not in sys.modules;"
        "from perception import PerceptionVocabulary, Span, SpanGrammar, MODALITIES;"
        "assert 'transformers' not in sys.modules;"
        "print(*(name for name in perception.__all__ if getattr(perception, name) is None))"
    )
    assert said.strip() == ""
    import perception

    assert set(perception.__all__) == set(perception._HOMES) <= set(dir(perception))


@pytest.mark.parametrize("folder", ["tokenizers", "models"])
def test_folders_of_weights_hold_no_python_and_nothing_pickled(folder: str) -> None:
    forbidden = {".py", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".npy"}
    assert [p for p in (ROOT / folder).rglob("*") if p.suffix in forbidden] == []


@pytest.mark.parametrize("package", sorted(ABOVE))
def test_arrows_run_one_way(package: str) -> None:
    wrong = {}
    for path in modules(package):
        if found := imported(path) & ABOVE[package]:
            wrong[str(path.relative_to(ROOT))] = sorted(found)
    assert wrong == {}


def test_no_file_names_a_place_on_somebody_s_machine() -> None:
    place = re.compile("/" + r"(home|Users|root|work)" + r"/[\w.-]+")
    found = []
    for path in kept_files():
        with contextlib.suppress(UnicodeDecodeError):
            lines = path.read_text().splitlines()
            found += [f"{path.relative_to(ROOT)}: {m[0]}" for line in lines if (m := place.search(line))]
    assert found == []


def import_graph(packages: Sequence[str]) -> dict[str, set[str]]:
    """Modules that each module imports, at its head, inside functions and under TYPE_CHECKING alike."""
    paths = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for p in packages for path in modules(p)}
    names = {path: name.removesuffix(".__init__") for path, name in paths.items()}
    known, graph = set(names.values()), {}
    for path, name in names.items():
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= inner & known or {node.module}
        graph[name] = found & known - {name}
    return graph


def import_cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another, directly or by way of others."""

    def reached(start: str) -> set[str]:
        seen, todo = set[str](), [start]
        while todo:
            for name in graph[todo.pop()] - seen:
                seen.add(name)
                todo.append(name)
        return seen

    reach = {name: reached(name) for name in graph}
    groups = {tuple(sorted(other for other in reach[name] if name in reach[other])) for name in graph}
    return [list(group) for group in sorted(groups) if group]


def test_no_modules_import_one_another_in_a_circle() -> None:
    assert import_cycles(import_graph(PACKAGES)) == []


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "e"}, "e": {"e"}, "f": set[str]()}
    assert import_cycles(graph) == [["a", "b", "c"], ["e"]]


def test_folders_are_small_enough_to_look_through() -> None:
    entries = {
        p.name for p in (ROOT / "perception").iterdir() if p.name not in ("__init__.py", "__pycache__", "py.typed")
    }
    assert len(entries) <= MAX_ENTRIES, sorted(entries)
    recipes = list((ROOT / "train").glob("*.py"))
    assert len(recipes) <= MAX_RECIPES, sorted(path.name for path in recipes)


def test_no_two_test_files_have_one_name() -> None:
    """Test folders are no packages, so a second file of one name stops the collection of the whole suite."""
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_no_two_classes_have_one_name() -> None:
    homes: dict[str, list[str]] = {}
    for package in ("vqvae", "perception", "train", "demos"):
        for path in modules(package):
            classes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
            for node in classes:
                homes.setdefault(node.name.lstrip("_"), []).append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


def documents() -> list[Path]:
    """The repository's pages and the cards of what ships."""
    pages = [p for p in kept_files() if p.suffix == ".md"]
    return [p for p in pages if p.parent in (ROOT, ROOT / "docs") or p.name == "README.md"]


def examples(text: str) -> list[tuple[int, str]]:
    """(line, code) of each python block of a Markdown text, but for those under the not-run mark."""
    blocks = (m for m in _BLOCK.finditer(text) if not m["mark"])
    return [(text.count("\n", 0, m.start("code")), m["code"]) for m in blocks]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [p for p in documents() if p.name != "asking.md" and examples(p.read_text())],  # tests/test_asking_docs.py runs it
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_examples_of_pages_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a document in one go, as a reader pastes them; from a folder that looks like the root, so that what
    they write does not land in the checkout."""
    for entry in ROOT.iterdir():
        if entry.name[0] != "." and entry.name != "runs":
            (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__example__"}
    for line, code in examples(path.read_text()):
        exec(compile("\n" * line + code, str(path), "exec"), namespace)


def test_marked_examples_are_left_out() -> None:
    text = f"a\n```python\nx = 1\n```\n{NOT_RUN}\n```python\nx = 2\n```\n```sh\nls\n```\n"
    assert examples(text) == [(2, "x = 1\n")]


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_files_that_pages_name_exist(path: Path) -> None:
    text = path.read_text()
    missing = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not _leads_somewhere(path, link)]
    named = re.findall(r"\b(?:train/configs|demos/examples|examples|benchmarks|docs|tests)/[\w./-]+\.\w+", text)
    missing += [name for name in named if "NAME" not in name and not (ROOT / name).is_file()]
    assert missing == []


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_that_pages_name_exist(path: Path) -> None:
    text = path.read_text()
    modules = {
        name for name in re.findall(r"-m ([\w.]+)", text) if name.split(".")[0] in PACKAGES and "NAME" not in name
    }
    files = {name: ROOT.joinpath(*name.split(".")) for name in modules}
    missing = [n for n, f in files.items() if not (f.with_suffix(".py").is_file() or (f / "__main__.py").is_file())]
    code = "\n".join(re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) + re.findall(r"`([^`]+)`", text))
    cli = (ROOT / "perception" / "cli.py").read_text()
    known = {name.replace("_", "-") for name in re.findall(r"^@app\.command\(\)\ndef (\w+)", cli, re.MULTILINE)}
    missing += set(re.findall(r"^perception ([a-z-]+)", code, re.MULTILINE)) - known
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert missing + list(set(re.findall(r"^make ([a-z-]+)", code, re.MULTILINE)) - targets) == []


def _leads_somewhere(page: Path, link: str) -> bool:
    """True if a link's file exists, and the heading behind its #."""
    if "://" in link:
        return True
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    if not target.exists() or not anchor:
        return target.exists()
    headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
    return anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
