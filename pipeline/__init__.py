"""The stages of dvc.yaml, a thin script each."""

from etpo_paper.base import command_line  # noqa: F401  sets how threads wait, which torch reads when it is loaded
