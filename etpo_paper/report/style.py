"""The style of the written programs and how it changes over training: figures and tables of the notebook `style`.

The action of the agent is the body of a function, or a whole file. `measure` parses it, without ever running it, and
says how long it is, which families of estimators it calls, whether it builds a pipeline and whether it prepares its
data first. The families are scikit-learn's own subpackages (`linear_model`, `ensemble`, ...), and the estimators are
looked up in the installed scikit-learn, so that no list here becomes outdated. The `construction` of a program is the
list of estimators that it calls, in order; by it one can see which kind of program wins in the end and when it first
appeared.
"""

import ast
import hashlib
import importlib
import textwrap
from dataclasses import dataclass
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.base import ClassifierMixin, TransformerMixin

from etpo_paper.environment.prompts import is_module, parsed, program
from etpo_paper.report import notebook, plotting, results, statistics
from etpo_paper.report.names import counted, label, task_label
from etpo_paper.report.results import LATE, period
from etpo_paper.report.tables import Table

_PACKAGES = (
    "calibration", "cluster", "decomposition", "discriminant_analysis", "dummy", "ensemble", "feature_extraction",
    "feature_selection", "gaussian_process", "impute", "kernel_approximation", "linear_model", "multiclass",
    "naive_bayes", "neighbors", "neural_network", "preprocessing", "random_projection", "semi_supervised", "svm",
    "tree",
)  # fmt: skip
_PIPELINE_CALLS = {"make_pipeline", "Pipeline", "make_column_transformer", "ColumnTransformer"}
NOTHING = "(no estimator)"
NOT_PYTHON = "(not Python)"

METHODS = ("ppo_kl", "etpo", "etpo_memory")
PANELS = {
    "ran": "share that runs",
    "parses": "share that is Python",
    "lines": "lines per program",
    "families": "families of classifiers\nper program",
    "preprocessing": "share with\npreprocessing",
    "pipeline": "share with a pipeline",
}
_FROM_ZERO = ("ran", "preprocessing", "pipeline", "distinct")
_COLUMNS = 3  # panels side by side


@dataclass(frozen=True)
class Measures:
    """Size and style of one program.

    Attributes:
        parses: whether the body is valid Python; if not, only `lines` is counted.
        lines: number of lines that are neither empty nor a comment.
        nodes: number of nodes of the body's syntax tree, a length that does not depend on layout and names.
        families: families of the classifiers that are called, sorted, e.g. ("ensemble", "linear_model").
        preprocessing: names of the transformers that are called, sorted, e.g. ("StandardScaler",).
        pipeline: whether a pipeline or a column transformer is built.
        construction: the estimators called, in order, e.g. "StandardScaler + LogisticRegression".
        fingerprint: a hash that is equal for programs that differ only in layout and comments.
    """

    parses: bool
    lines: int
    nodes: int
    families: tuple[str, ...]
    preprocessing: tuple[str, ...]
    pipeline: bool
    construction: str
    fingerprint: str


@cache
def _known() -> tuple[dict[str, str], frozenset[str]]:
    # Classifier -> family, and the transformers. Importing them all takes a second, so it is done at the first call.
    classifiers: dict[str, str] = {}
    transformers: set[str] = set()
    for family in _PACKAGES:
        package = importlib.import_module(f"sklearn.{family}")
        for name, kind in vars(package).items():
            # A class that a package imports from another package belongs to that one.
            own = isinstance(kind, type) and kind.__module__.startswith(f"sklearn.{family}")
            if not own or name in _PIPELINE_CALLS or name.startswith("_") or name.endswith("Regressor"):
                continue
            if issubclass(kind, ClassifierMixin):
                classifiers[name] = family
            elif issubclass(kind, TransformerMixin):
                transformers.add(name)
    return classifiers, frozenset(transformers)


def measure(body: str) -> Measures:
    """Measures the body of `build_model`, or a whole file.

    Args:
        body: text of the action, indented as the agent writes it.
    """
    lines = sum(1 for line in body.splitlines() if line.strip() and not line.strip().startswith("#"))
    tree = parsed(program(body))
    if tree is not None and is_module(body):
        statements = tree.body
    elif tree is not None and isinstance(tree.body[-1], ast.FunctionDef):
        statements = tree.body[-1].body[:-1]  # without the `return model` of the environment
    else:
        return Measures(False, lines, 0, (), (), False, NOT_PYTHON, _digest(body.strip()))
    classifiers, transformers = _known()
    calls = [name for statement in statements for name in _calls(statement)]
    estimators = [name for name in calls if name in classifiers or name in transformers]
    return Measures(
        parses=True,
        lines=lines,
        nodes=sum(1 for statement in statements for _ in ast.walk(statement)),
        families=tuple(sorted({classifiers[name] for name in calls if name in classifiers})),
        preprocessing=tuple(sorted({name for name in calls if name in transformers})),
        pipeline=any(name in _PIPELINE_CALLS for name in calls),
        construction=" + ".join(dict.fromkeys(estimators)) or NOTHING,
        fingerprint=_digest("\n".join(ast.dump(statement) for statement in statements)),
    )


def measure_samples(samples: pd.DataFrame) -> pd.DataFrame:
    """Adds the measures to samples of code, as columns.

    Args:
        samples: see `results.load_samples`.

    Returns:
        The samples with parses, lines, nodes, families (their number), preprocessing (whether there is any), pipeline,
        construction, fingerprint and ran (whether the status is "ok").
    """
    measures = [measure(code or "") for code in samples["code"]]
    frame = samples.reset_index(drop=True).copy()
    for name in ("parses", "lines", "nodes", "pipeline", "construction", "fingerprint"):
        frame[name] = [getattr(entry, name) for entry in measures]
    frame["families"] = [len(entry.families) for entry in measures]
    frame["preprocessing"] = [bool(entry.preprocessing) for entry in measures]
    frame["ran"] = frame["status"] == "ok"
    return frame


def winning_construction(measured: pd.DataFrame) -> str | None:
    """The most frequent construction of the programs that ran in the last fifth of the updates.

    Args:
        measured: see `measure_samples`.

    Returns:
        Its name, the first in alphabetical order of equally frequent ones; None if no program ran.
    """
    if measured.empty:
        return None
    late = measured[measured["ran"] & (period(measured["update"]) == LATE)]
    if late.empty:
        late = measured[measured["ran"]]
    if late.empty:
        return None
    counts = late["construction"].value_counts()
    return sorted(counts[counts == counts.max()].index)[0]


def share_of_construction(measured: pd.DataFrame, name: str) -> pd.DataFrame:
    """The share of samples that have a construction, update by update.

    Args:
        measured: see `measure_samples`.
        name: the construction.

    Returns:
        Columns update and share; the construction first appeared in the first row with share > 0.
    """
    is_it = measured["construction"] == name
    return is_it.groupby(measured["update"]).mean().rename("share").reset_index()


@dataclass(frozen=True, eq=False)
class Styles:
    """What the notebook shows.

    Attributes:
        samples: see `measure_samples`, with a column when (see `results.period`).
        steps: environment steps of the same methods.
        methods: methods with finished runs.
        main: the method whose programs are looked at more closely: ETPO if it was run.
        stand_ins: see `results.stand_ins`.
        notes: see `results.notes`.
    """

    samples: pd.DataFrame
    steps: pd.DataFrame
    methods: list[str]
    main: str
    stand_ins: dict[str, str]
    notes: list[str]

    @property
    def own(self) -> pd.DataFrame:
        """The samples of `main`."""
        return self.samples[self.samples["method"] == self.main]

    @property
    def tasks(self) -> list[str]:
        """The tasks of `main`."""
        return sorted(self.own["task"].unique())

    def task_label(self, task: str) -> str:
        """A task's name as shown."""
        return task_label(task, task in self.stand_ins)


def load(scale: str) -> Styles:
    """Reads and measures the samples of a scale.

    Raises:
        UserError: no method has a finished run.
    """
    samples, steps = results.load_samples(scale), results.load_steps(scale)
    methods = results.finished_methods(samples, METHODS)
    samples = measure_samples(samples[samples["method"].isin(methods)])
    return Styles(
        samples=samples.assign(when=period(samples["update"])),
        steps=steps[steps["method"].isin(methods)],
        methods=methods,
        main="etpo" if "etpo" in methods else methods[0],
        stand_ins=results.stand_ins(results.load_cards(scale)),
        notes=results.notes(scale, samples, METHODS, intervals=False),
    )


def answer(data: Styles) -> str:
    """The programs of the main method in its first batch and in the last fifth of training."""
    before, after = (part[list(PANELS)].mean() for part in _first_and_last(data.own).values())

    def change(name: str, form: str) -> str:
        return f"{before[name]:{form}} → {after[name]:{form}}"

    return notebook.answer(
        f"{label(data.main)}, first batch against last fifth: code that runs {change('ran', '.0%')}, "
        f"lines {change('lines', '.1f')}, with preprocessing {change('preprocessing', '.0%')}, "
        f"in a pipeline {change('pipeline', '.0%')}.",
        data.notes,
    )


def complexity_figure(data: Styles, generator: np.random.Generator) -> Figure:
    """The measures over training, a panel for each, and the share of distinct programs in a batch.

    Args:
        data: what the notebook shows.
        generator: source of the random numbers for the intervals.
    """
    height = 1.55 * 3 + 0.2
    figure, grid = plt.subplots(3, _COLUMNS, figsize=(plotting.PAGE_WIDTH, height), sharex=True)
    by_batch = [*results.KEYS, "update"]
    kept = data.samples.astype(dict.fromkeys(PANELS, float)).groupby(by_batch, as_index=False)[list(PANELS)].mean()
    drawn = {name: (kept, text) for name, text in PANELS.items()}
    drawn["distinct"] = (_distinct_programs(data.steps), "share of distinct\nprograms")
    tasks = results.common_tasks(kept, data.methods)
    for axes, (name, (frame, text)) in zip(grid.flat, drawn.items(), strict=False):
        curves = statistics.aggregate_curves(frame, "update", name, data.methods, tasks, generator)
        plotting.draw_curves(axes, plotting.counting(curves), curves)
        axes.set_ylabel(text)
        axes.tick_params(labelbottom=True)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        if name in _FROM_ZERO:
            axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])  # a line at 0 is seen whole
    used, unused = list(grid.flat[: len(drawn)]), grid.flat[len(drawn) :]
    for axes in unused:
        axes.set_axis_off()
    plotting.label_lowest(used, _COLUMNS, "update")
    figure.tight_layout()
    plotting.legend_above(figure, used[:1])
    plotting.footnote(
        figure,
        [
            f"{_kept(data)} The share of distinct programs is of all programs of a batch.",
            _about_lines(data, "tasks and seeds"),
            *data.notes,
        ],
    )
    return figure


def complexity_table(data: Styles) -> Table:
    """The means of the measures, before and after training."""
    rows = []
    for method in data.methods:
        for when, part in _first_and_last(data.samples[data.samples["method"] == method]).items():
            row: dict[str, object] = {"method": method, "when": when, "samples": len(part)}
            row |= {name: float(part[name].mean()) for name in (*PANELS, "nodes")}
            rows.append(row | {"distinct": float(part["fingerprint"].nunique() / len(part))})
    numbers = pd.DataFrame(rows)
    shown = numbers.assign(method=[label(method) for method in numbers["method"]])
    caption = (
        "Means over the kept samples: shares that run, parse, prepare data and build a pipeline; sizes; "
        "share of distinct programs."
    )
    return Table(numbers, caption, shown, data.notes, digits=2)


def emergence(data: Styles, generator: np.random.Generator) -> tuple[Figure, Table]:
    """How the winning construction of each task emerged: its share update by update, and when it first appeared.

    Args:
        data: what the notebook shows.
        generator: source of the random numbers for the intervals.
    """
    beside = min(2, len(data.tasks))
    width = (plotting.PAGE_WIDTH - 0.4) / beside
    figure, used = plotting.panels(len(data.tasks), beside, width, 1.9, "share of programs")
    rows: list[dict[str, object]] = []
    for axes, task in zip(used, data.tasks, strict=True):
        on_task = data.own[data.own["task"] == task]
        winner = winning_construction(on_task)
        axes.set_title(f"{data.task_label(task)}\n{winner or 'no program ran'}")
        if winner is None:
            rows.append({"task": task, "construction": None})
            continue
        won = on_task.assign(share=(on_task["construction"] == winner).astype(float))
        by_run = won.groupby([*results.KEYS, "update"])["share"].mean().reset_index()
        curves = statistics.aggregate_curves(by_run, "update", "share", [data.main], [task], generator)
        plotting.draw_curves(axes, plotting.counting(curves), curves)
        share = share_of_construction(on_task, winner)
        first = share.loc[share["share"] > 0].iloc[0]
        axes.plot(first["update"] + 1, first["share"], "x", color="black", zorder=3, label="first such program")
        plotting.whole_numbers(axes)
        begin, end = (float((part["construction"] == winner).mean()) for part in _first_and_last(on_task).values())
        rows.append(
            {
                "task": task,
                "construction": winner,
                "first_update": int(first["update"]) + 1,
                "share_first_batch": begin,
                "share_last_fifth": end,
            }
        )
    used[0].set_ylim(-0.03, 1.03)  # for all panels, because they share the axis
    plotting.label_lowest(used, beside, "update")
    figure.tight_layout()
    plotting.legend_above(figure, used)
    plotting.footnote(
        figure,
        [
            f"Below the name of each task: the estimators that {label(data.main)}'s programs call most often, "
            "of those that ran in the last fifth of training.",
            f"{_kept(data)} {_about_lines(data, 'seeds')}",
            *data.notes,
        ],
    )

    columns = ["task", "construction", "first_update", "share_first_batch", "share_last_fifth"]
    numbers = pd.DataFrame(rows, columns=columns).astype({"first_update": "Int64"})
    shown = numbers.assign(task=[data.task_label(task) for task in numbers["task"]])
    shown.columns = pd.Index(["Data set", "Construction", "First update", "Share, first batch", "Share, last fifth"])
    return figure, Table(numbers, f"The winning construction of {label(data.main)} on each task.", shown, data.notes)


def codes(data: Styles) -> Table:
    """Code before and after training, for each task and its first seed.

    Before: the first program kept of the first batch. After: the program with the highest reward of those kept in the
    last fifth of training, the earliest of equally good ones.
    """
    rows = []
    for task in data.tasks:
        run = data.own[data.own["task"] == task]
        run = run[run["seed"] == run["seed"].min()].sort_values("step")
        early, late = run[run["update"] == 0].head(1), run[run["when"] == LATE]
        late = late.sort_values(["reward", "step"], ascending=[False, True]).head(1)
        for when, chosen in (("before", early), ("after", late)):
            for sample in chosen.to_dict("records"):
                code = textwrap.dedent(sample["code"] or "").strip()
                found = {"step": sample["step"], "reward": float(sample["reward"]), "code": code}
                rows.append({"task": task, "when": when} | found)
    numbers = pd.DataFrame(rows, columns=["task", "when", "step", "reward", "code"])
    shown = numbers.assign(task=[data.task_label(task) for task in numbers["task"]])
    caption = f"Code written by {label(data.main)} before and after training."
    return Table(numbers, caption, shown, data.notes)


def code_listing(table: Table) -> str:
    """The programs of `codes` as Markdown, each in a block of its own."""
    shown = table.numbers if table.shown is None else table.shown
    return "\n\n".join(
        f"**{row['task']}, {row['when']} training** (step {row['step']}, reward {row['reward']:.3f})\n\n"
        f"```python\n{row['code']}\n```"
        for row in shown.to_dict("records")
    )


def _first_and_last(samples: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {"first batch": samples[samples["update"] == 0], "last fifth": samples[samples["when"] == LATE]}


def _kept(data: Styles) -> str:
    """How many programs the measures are of, in a sentence."""
    kept = data.samples.groupby([*results.KEYS, "update"]).size().max()
    return f"Measured are the {counted(kept, 'program')} that a run keeps of each batch."


def _about_lines(data: Styles, over: str) -> str:
    """What the lines and bands of a figure are, in a sentence; `over` says what the lines are means over."""
    if (data.samples.groupby(["method", "task"])["seed"].nunique() > 1).any():
        return f"Lines are means over {over}, and bands their 95 % intervals from a bootstrap over seeds."
    return f"Lines are means over {over}; there is one seed, hence no interval."


def _distinct_programs(steps: pd.DataFrame) -> pd.DataFrame:
    """The share of different texts among all programs of a batch: columns method, task, seed, update and distinct."""
    batches = steps.groupby([*results.KEYS, "update"])["code_hash"]
    # A last batch that was cut short is left out: fewer programs can be alike there.
    whole = batches.size() == batches.size().max()
    return (batches.nunique() / batches.size())[whole].rename("distinct").reset_index()


def _calls(statement: ast.stmt) -> list[str]:
    found = [node for node in ast.walk(statement) if isinstance(node, ast.Call)]
    found.sort(key=lambda node: (node.func.end_lineno or 0, node.func.end_col_offset or 0))
    names = []
    for node in found:
        if isinstance(node.func, ast.Name):
            names.append(node.func.id)
        elif isinstance(node.func, ast.Attribute):
            names.append(node.func.attr)
    return names


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
