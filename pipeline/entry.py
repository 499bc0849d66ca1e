"""What all stages share: the form of their command line, their settings checked as a whole, mistakes told in one line.

A stage looks like this:

    def main(argv: Sequence[str] | None = None) -> None:
        arguments = entry.parser(__doc__, scale="laptop").parse_args(argv)
        with entry.one_line_errors():
            run(arguments.scale)  # which begins with entry.resolve(scale)
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

from etpo_core import errors
from etpo_paper.base.sections import Section, mistake, unknown_name
from etpo_paper.base.settings import Settings, load_settings


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are told like all others: in one line, with exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Ends the program."""
        self.exit(2, f"error: {message}; see `{self.prog} --help`\n")


def parser(doc: str | None, *, scale: str | None = None) -> Parser:
    """The command line of a stage.

    Args:
        doc: the module's docstring, which is what `--help` shows.
        scale: an example of a scale, for a stage that takes one.
    """
    made = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if scale is not None:
        made.add_argument("--scale", required=True, help=f"one of params.yaml or a finished round, e.g. {scale}")
    return made


@contextmanager
def one_line_errors() -> Iterator[None]:
    """`etpo_core.errors.one_line_errors`, and a line at the start where Ctrl-C has no effect.

    A command that a script starts in the background inherits that the signal of Ctrl-C is ignored, and Python leaves it
    so.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        stop = f"`kill {os.getpid()}` stops it"
        print(f"note: Ctrl-C has no effect here, what started this command switched it off; {stop}", file=sys.stderr)
    with errors.one_line_errors():
        yield


def resolve(scale: str, method: str | None = None) -> Settings:
    """The settings of a scale, with everything that it will run checked before anything runs.

    Args:
        scale: a scale of `params.yaml` or a finished round of tuning.
        method: whose runs they are for, see `load_settings`.

    Raises:
        UserError: for the first mistake in the settings, the methods, the tasks or the model.
    """
    from etpo_paper.methods import check_method  # brings torch with it, which takes seconds

    settings = load_settings(scale, method)
    for task in settings.tasks:
        check_task(task, settings)
    for name in {**dict.fromkeys(settings.method_names), **({method: None} if method else {})}:
        if check_method(name, settings.methods[name]):
            _check_sampling(name, load_settings(scale, name) if "training" in settings.methods[name] else settings)
    if "worlds" in settings.named:
        for variant in settings.worlds.variants:
            check_method(*variant_section(settings, variant))
    return settings


def check_task(name: str, settings: Settings | None = None) -> None:
    """Raises `UserError` for a task that does not exist; with settings, says that they name it."""
    from etpo_paper.data.tasks import TASKS

    if name not in TASKS:
        raise unknown_name("task", name, TASKS, settings.place("tasks") if settings else None)


def variant_section(settings: Settings, variant: str) -> tuple[str, Section]:
    """A variant of the section `worlds`: its method, and that method's section with what the variant changes.

    Raises:
        UserError: the variant names no method, or one that has no section.
    """
    w, place = settings.worlds, settings.place("worlds", "variants", variant)
    changes = w.variants[variant]
    if not isinstance(changes, Mapping) or not isinstance(changes.get("method"), str):
        raise mistake(place, changes, "a section of settings with the name of a method, as in {method: etpo}")
    name = changes["method"]
    if name not in settings.methods:
        raise unknown_name("method", name, settings.methods, place)
    changed = {key: value for key, value in dict(changes).items() if key != "method"}
    section = settings.methods[name].plain() | {"beta": w.beta, "gamma": w.gamma} | changed
    return name, Section(section, place)


def _check_sampling(name: str, settings: Settings) -> None:
    """Methods that learn take each action as drawn from the policy itself, so it has to be.

    Raises:
        UserError: temperature or top-k say otherwise.
    """
    for key, wanted in (("temperature", 1.0), ("top_k", 0)):
        if (found := getattr(settings.training, key)) != wanted:
            expected = f"{wanted}: {name} learns from actions as drawn from the policy itself"
            raise mistake(settings.place("training", key), found, expected)
