"""The documentation keeps its promises: links lead somewhere, names exist, and the example of a new method learns.

The pages follow one convention. A link whose text is a name in backquotes and whose target is a Python file says that
the file defines that name: [`token_targets`](etpo_core/bellman.py), or in a class, [`World.backup`](...). So a function
that moves takes its links with it, or a test fails. Line numbers are not used, because they go stale unnoticed.
"""

import ast
import json
import re
import subprocess
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORDS_OF_README = 1200
ITEMS = ("exploration", "main_table", "convergence", "style", "perplexity", "ablations", "dataset_table", "algorithm")
# Folders whose content a machine makes for itself; the pages speak of files in them that no checkout has.
MADE = ("models/", "data/tables", "data/corpora", "data/downloads", "data/local", "build/", "results/smoke", ".venv")

FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r"\$\$.+?\$\$|\$[^$\n]+\$", re.DOTALL)  # brackets in them are not links
EXAMPLE = re.compile(r"<!-- example: (\S+) -->\n```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[((?:`[^`]*`|[^\[\]`])*)\]\(([^()\s]+)\)")
NAME = re.compile(r"`([A-Za-z_][\w.]*)`")
QUOTED = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
MODULE = re.compile(r"python -m ((?:pipeline|benchmarks|etpo_core)[\w.]*)")
NOTEBOOK_OPTION = re.compile(r"--notebook ([a-z_]+)")
TARGET = re.compile(r"\bmake ([a-z][a-z-]*)\b")


def pages() -> dict[str, str]:
    """Every page by its path in the repository: Markdown files, and the Markdown cells of each notebook."""
    files = [
        ROOT / name for name in ("README.md", "REPRODUCE.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")
    ]
    files += sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "studies").glob("*/README.md"))
    found = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        found[str(path.relative_to(ROOT))] = "\n\n".join(texts)
    return found


PAGES = pages()


@cache
def names_of(path: Path) -> frozenset[str]:
    """What a Python file defines: functions, classes, module-level names, and `Class.member`."""
    found: set[str] = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign):
                found.update(prefix + target.id for target in node.targets if isinstance(target, ast.Name))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(prefix + node.target.id)

    visit(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return frozenset(found)


@cache
def anchors_of(path: Path) -> frozenset[str]:
    """The anchors that a code host makes of a page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = "".join(c for c in plain.lower().replace(" ", "-") if c.isalnum() or c in "-_")
        number = sum(1 for known in found if re.fullmatch(re.escape(slug) + r"(-\d+)?", known))
        found.add(f"{slug}-{number}" if number else slug)
    return frozenset(found)


def broken_links(page: str, text: str) -> list[str]:
    """What is wrong with the relative links of a page, a line each."""
    wrong = []
    for shown, target in LINK.findall(FORMULA.sub("", FENCE.sub("", text))):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = unquote(target).partition("#")
        path = (ROOT / page).parent / place if place else ROOT / page
        if not path.exists():
            wrong.append(f"{target} does not exist")
            continue
        name = NAME.fullmatch(shown)
        if path.suffix == ".py" and name and name[1] != path.stem and not name[1].endswith(".py"):
            if name[1] not in names_of(path):
                wrong.append(f"{place} does not define {name[1]}")
        elif anchor and (path.suffix != ".md" or anchor not in anchors_of(path)):
            wrong.append(f"{target} has no such heading")
    return wrong


@cache
def tracked() -> tuple[str, ...]:
    """All files that git knows or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return tuple(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines())


def missing_paths(page: str, text: str) -> list[str]:
    """Paths in backquotes that look like files of this repository and are none."""
    wrong = []
    rooms = {name.split("/")[0] for name in tracked() if "/" in name}
    invented = {path for path, _ in EXAMPLE.findall(text)}
    for quoted in QUOTED.findall(FENCE.sub("", text)):
        path = quoted.rstrip("/")
        if not re.fullmatch(r"[\w./-]+", quoted) or "/" not in quoted or path.split("/")[0] not in rooms:
            continue
        if any(part.isupper() for part in re.split(r"[/_.]", path)) or path.startswith(MADE):
            continue  # a placeholder such as results/study/METHOD, or what a machine makes for itself
        if path not in invented and not (ROOT / path).exists():
            wrong.append(f"`{quoted}` does not exist")
    return wrong


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_names_and_headings_that_exist(page):
    wrong = broken_links(page, PAGES[page])
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_paths_in_backquotes_exist(page):
    wrong = missing_paths(page, PAGES[page])
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_commands_name_modules_notebooks_and_targets_that_exist(page):
    text = PAGES[page]
    makefile = (ROOT / "Makefile").read_text()
    wrong = [m for m in MODULE.findall(text) if not list(ROOT.glob(m.replace(".", "/") + "*"))]
    wrong += [n for n in NOTEBOOK_OPTION.findall(text) if not (ROOT / "notebooks" / f"{n}.ipynb").is_file()]
    in_code = " ".join([*FENCE.findall(text), *QUOTED.findall(FENCE.sub("", text))])
    wrong += [t for t in TARGET.findall(in_code) if not re.search(rf"^{t}:", makefile, re.MULTILINE)]
    assert not wrong, "\n".join(wrong)


def test_the_checks_find_what_is_wrong():
    text = (
        "[`nowhere`](../etpo_core/bellman.py) [`token_targets`](../etpo_core/bellman.py) [a](gone.md) "
        "[b](#no-such-heading) ![c](../figures/gone.png) `etpo_core/gone.py` `etpo_core/bellman.py`"
    )
    assert broken_links("docs/results.md", text) == [
        "../etpo_core/bellman.py does not define nowhere",
        "gone.md does not exist",
        "#no-such-heading has no such heading",
        "../figures/gone.png does not exist",
    ]
    assert missing_paths("docs/results.md", text) == ["`etpo_core/gone.py` does not exist"]


def test_the_readme_can_be_read_in_five_minutes():
    text = PAGES["README.md"]
    assert len(text.split()) <= WORDS_OF_README
    assert "make repro" in text and "make test" in text


def test_the_readme_names_every_item_of_the_paper():
    assert [name for name in ITEMS if f"notebooks/{name}.ipynb" not in PAGES["README.md"]] == []


@pytest.mark.parametrize("equation", ["token_targets", "policy_loss", "kl_divergence", "ppo_clipped_loss", "PPOKL"])
def test_an_equation_is_one_click_from_its_function_test_and_notebook(equation):
    rows = [line for line in PAGES["README.md"].splitlines() if line.startswith("|") and f"`{equation}`" in line]
    assert len(rows) == 1
    targets = [target for _, target in LINK.findall(rows[0])]
    assert any(target.startswith("etpo_core/") for target in targets)
    assert any(target.startswith("tests/") for target in targets)
    assert any(target.startswith("notebooks/") for target in targets)


@pytest.fixture
def batch_relative():
    """The class that docs/methods.md shows as an example of a new method."""
    [(_, source)] = EXAMPLE.findall(PAGES["docs/methods.md"])
    namespace: dict = {"__name__": "example"}
    exec(compile(source, "docs/methods.md", "exec"), namespace)  # our own page
    return namespace["BatchRelative"]


def test_the_example_of_a_method_finds_the_best_policy_where_an_action_is_the_whole_episode(batch_relative):
    from etpo_paper.tabular.learning import learn
    from etpo_paper.tabular.worlds import random_world

    settings = {"beta": 0.3, "clip": 0.2, "epochs": 2, "policy_lr": 0.03, "reflect": True}
    one_state = random_world(1, states=1, done_share=1.0)
    run = {"count": 16, "steps": 4, "seed": 1, "beta": 0.3}
    regret = learn(batch_relative(**settings), one_state, updates=60, gamma=0.0, **run)
    assert regret[0] == pytest.approx(0.395, abs=1e-3) and regret[-1] < 0.0025  # as the page says
    regret = learn(batch_relative(**settings), random_world(1), updates=40, gamma=0.9, **run)
    assert regret[0] == pytest.approx(3.24, abs=0.01) and regret[-1] == pytest.approx(1.9, abs=0.1)
