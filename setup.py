"""Puts into a wheel what the commands read besides code: the settings, the starts of the models, the embedded tables.

In a checkout these files lie at its root, where a stage, a study and a reader look for them; `etpo_paper.base.paths`
finds them in either place. Everything else about the package is in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FILES = ("params.yaml", "starts/README.md", "starts/*/*.json", "starts/*/*.safetensors", "data/embedded/*.*[!y]")


class WithFiles(build_py):
    """Copies the files; an editable installation uses those of the checkout."""

    def run(self) -> None:
        """Builds the packages and then copies."""
        super().run()
        if self.editable_mode:
            return
        for file in (file for pattern in FILES for file in Path().glob(pattern)):
            place = Path(self.build_lib, "etpo_paper", "shipped", file)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


setup(cmdclass={"build_py": WithFiles})
