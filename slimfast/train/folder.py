"""The folder of a run: what lies where, and whether it may be written to."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

import slimfast
from slimfast._atomic import write_text_atomically
from slimfast.train.errors import UsageError
from slimfast.train.recipe import Recipe
from slimfast.train.recipe_file import dump, first_difference, load_recipe

NETWORKS: Sequence[str] = ("dense", "sparse", "pruned", "finetuned", "deployed")


class RunFolder:
    """Paths in a run's folder. A network's file appears only when its stage is finished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.toml"
        self.metrics = path / "metrics.jsonl"
        self.checkpoint = path / "checkpoint.safetensors"
        self.summary = path / "summary.json"

    def network(self, name: str) -> Path:
        """Where one of ``NETWORKS`` is."""
        return self.path / f"{name}.safetensors"

    def load(self, name: str) -> nn.Module:
        """One of ``NETWORKS``, in eval mode.

        Raises:
            ValueError: the file is damaged.
        """
        return slimfast.load(self.network(name)).eval()

    def begin(self, recipe: Recipe) -> None:
        """Makes the folder and notes the recipe.

        Raises:
            OSError: it cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        write_text_atomically(self.recipe, dump(recipe))

    def is_empty(self) -> bool:
        """Whether nothing that a run writes is here yet."""
        files = [self.recipe, self.metrics, self.checkpoint, self.summary, *map(self.network, NETWORKS)]
        return not any(file.exists() for file in files)


def check_folder(path: Path, recipe: Recipe, *, resume: bool) -> RunFolder:
    """The folder for a run of ``recipe``, or for going on with one; nothing is written yet.

    Raises:
        UsageError: it holds a run and ``resume`` is false; or a run of another recipe.
    """
    folder = RunFolder(path)
    if path.exists() and not path.is_dir():
        raise UsageError(f"--out {path}: is a file; a folder is accepted")
    if not folder.is_empty() and not resume:
        raise UsageError(f"--out {path}: holds a run; --resume goes on with it, or name another folder")
    if folder.recipe.exists():
        difference = first_difference(load_recipe(folder.recipe), recipe)
        if difference:
            raise UsageError(f"--out {path}: holds a run of another recipe: {difference}")
    return folder
