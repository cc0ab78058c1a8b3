"""A whole experiment: [dense] -> sparse -> prune -> fine-tune -> deploy -> measure."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import slimfast
from slimfast._atomic import write_text_atomically
from slimfast.pruning import PruneResult
from slimfast.train.errors import RunError, UsageError
from slimfast.train.evaluate import accuracy
from slimfast.train.folder import check_folder
from slimfast.train.measure import summarise
from slimfast.train.metrics import count_zeros
from slimfast.train.progress import Display
from slimfast.train.recipe import FinetuneSection, Recipe, choose_device
from slimfast.train.setup import build_model, build_optimizer, evaluation_loader, load_pictures, rehearse
from slimfast.train.stage import Run, Stage, train_stage


def prepare(recipe: Recipe, out: Path, *, resume: bool, display: Display) -> Run:
    """Loads the pictures, looks at the folder, sets torch's threads; writes nothing.

    Raises:
        UsageError: see ``check_folder``, ``choose_device``, ``load_pictures``.
    """
    folder = check_folder(out, recipe, resume=resume)
    device = choose_device(recipe.device)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    return Run(recipe, folder, load_pictures(recipe.data), device, display)


def train(run: Run) -> dict[str, Any]:
    """The sparse stage alone; its network is sparse.safetensors."""
    _begin(run, deploys=False)
    _train_fresh(run, _sparse(run.recipe))
    return _result(run, "sparse")


def finetune(run: Run, source: Path | None) -> dict[str, Any]:
    """The fine-tuning stage alone, from a saved network, of which the folder keeps a copy.

    Raises:
        UsageError: the recipe has no [finetune], or there is no network to start from.
    """
    start = run.folder.network("pruned")
    if run.recipe.finetune is None:
        raise UsageError("finetune: the recipe has no [finetune] section; epochs = 16 there would do")
    if source is None and not start.exists():
        raise UsageError("finetune: --from FILE is needed: a network that slimfast.save wrote")
    if source is not None and not start.exists():
        model = slimfast.load(source)
        rehearse(model, run.pictures.train)
        run.folder.begin(run.recipe)
        slimfast.save(model, start)
    _finetune(run, run.recipe.finetune)
    return _result(run, "finetuned")


def run_all(run: Run) -> dict[str, Any]:
    """Every stage of the recipe that is not finished yet; returns what summary.json holds.

    Every stage starts from the previous one's file, so that a run that was stopped and one that was not do
    the same.
    """
    recipe, folder = run.recipe, run.folder
    if folder.summary.exists():
        run.display.say(f"{folder.path}: finished already")
        return json.loads(folder.summary.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    _begin(run, deploys=True)
    seconds: dict[str, float] = {}
    if recipe.baseline:
        total = recipe.train.epochs + (recipe.finetune.epochs if recipe.finetune else 0)
        _train_fresh(run, Stage("dense", "dense", recipe.baseline.epochs or total, recipe.optimizer.lr))
    _train_fresh(run, _sparse(recipe))
    pruned = _timed(seconds, "prune", lambda: _prune(run))
    if recipe.finetune:
        _finetune(run, recipe.finetune)
    _timed(seconds, "deploy", lambda: _deploy(run))
    summary = summarise(run, pruned.report, seconds)
    write_text_atomically(folder.summary, json.dumps(summary, indent=1) + "\n")
    return summary


def _begin(run: Run, *, deploys: bool) -> None:
    """Tries out the network before the folder holds anything that a corrected recipe would collide with."""
    if not run.folder.recipe.exists():
        model = _fresh(run)
        if deploys and not count_zeros(model)[1]:
            raise RunError(f"model {run.recipe.model.name}: has no affine BatchNorm, so nothing to prune")
        build_optimizer(run.recipe, model, run.recipe.optimizer.lr, run.recipe.build_penalties())
        rehearse(model, run.pictures.train, deploys=deploys)
        run.folder.begin(run.recipe)


def _fresh(run: Run, network: str = "sparse") -> nn.Module:
    torch.manual_seed(run.recipe.seed)
    psconv = None if network == "dense" else run.recipe.psconv
    return build_model(run.recipe.model, run.pictures.train, psconv)


def _sparse(recipe: Recipe) -> Stage:
    return Stage("sparse", "sparse", recipe.train.epochs, recipe.optimizer.lr, recipe.build_penalties())


def _train_fresh(run: Run, stage: Stage) -> None:
    if not run.folder.network(stage.network).exists():
        train_stage(run, stage, _fresh(run, stage.network))


def _finetune(run: Run, section: FinetuneSection) -> None:
    if not run.folder.network("finetuned").exists():
        stage = Stage("finetune", "finetuned", section.epochs, section.lr or run.recipe.optimizer.lr)
        train_stage(run, stage, run.folder.load("pruned"))


def _prune(run: Run) -> PruneResult:
    criterion = run.recipe.prune.model_dump(exclude_none=True)
    model = run.folder.load("sparse")
    zeros, channels = count_zeros(model)
    if zeros == channels:
        raise RunError(f"all {channels} scales are zero, nothing would be left; try a lower penalty.lam")
    result = slimfast.prune(model, run.pictures.example(), **criterion)
    report, file = result.report, run.folder.network("pruned")
    run.display.say(
        f"prune: {zeros} of {channels} scales were zero; channels {report.channels_before} -> "
        f"{report.channels_after}, parameters {report.params_before:,} -> {report.params_after:,}"
    )
    if not file.exists():
        slimfast.save(result.model, file)
    return result


def _deploy(run: Run) -> None:
    file = run.folder.network("deployed")
    if not file.exists():
        name = "finetuned" if run.recipe.finetune else "pruned"
        model = run.folder.load(name).to(run.device)
        section = run.recipe.deploy
        example = run.pictures.example(section.batch).to(run.device)
        deployed = slimfast.deploy(model, example, dtype=getattr(torch, section.dtype))
        slimfast.save(deployed, file)


def _result(run: Run, network: str) -> dict[str, Any]:
    model = run.folder.load(network)
    zeros, channels = count_zeros(model)
    batches = evaluation_loader(run.pictures.test, run.device)
    return {
        "name": run.recipe.name,
        "network": str(run.folder.network(network)),
        "test_accuracy": accuracy(model.to(run.device), batches),
        "zeros": zeros,
        "channels": channels,
    }


def _timed(seconds: dict[str, float], what: str, work: Callable[[], Any]) -> Any:
    started = time.perf_counter()
    result = work()
    seconds[what] = time.perf_counter() - started
    return result
