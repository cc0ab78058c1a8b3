"""What each subcommand does: read, call, print."""

import json
import statistics
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import slimfast
from slimfast import report
from slimfast.cli import psconv, show
from slimfast.cli.example import example_input
from slimfast.packed import Deployed
from slimfast.train import Display, Recipe, finetune, load_recipe, prepare, run_all, train
from slimfast.train.recipe import choose_device
from slimfast.train.timing import Timed, in_faster_format, interleaved


def _run(given: Namespace) -> None:
    run = prepare(_recipe(given), given.out, resume=given.resume, display=Display())
    summary = run_all(run)
    page = report.write(given.out)
    _print(given, summary, lambda: show.summary(summary, page))


def _train(given: Namespace) -> None:
    result = train(prepare(_recipe(given), given.out, resume=given.resume, display=Display()))
    _print(given, result, lambda: show.trained(result))


def _finetune(given: Namespace) -> None:
    recipe = _recipe(given)
    run = prepare(recipe, given.out, resume=given.resume, display=Display())
    result = finetune(run, given.source)
    _print(given, result, lambda: show.trained(result))


def _prune(given: Namespace) -> None:
    model = _network(given.file)
    result = slimfast.prune(
        model, example_input(model, given.file, given.input), ratio=given.ratio, threshold=given.threshold
    )
    slimfast.save(result.model, given.out)
    answer = {"out": str(given.out), **result.report.to_dict()}
    _print(given, answer, lambda: print(f"{result.report}\n{given.out}"))


def _deploy(given: Namespace) -> None:
    device = choose_device(given.device)
    out = given.out or given.file.with_suffix(f".deployed{given.file.suffix}")
    model = _network(given.file).to(device)
    deployed = slimfast.deploy(
        model, example_input(model, given.file, given.input).to(device), dtype=getattr(torch, given.dtype)
    )
    slimfast.save(deployed, out)
    _print(given, {"out": str(out), "dtype": given.dtype, "device": str(device)}, lambda: print(out))


def _bench(given: Namespace) -> None:
    device, dtype = choose_device(given.device), getattr(torch, given.dtype)
    model = slimfast.load(given.file)
    x = example_input(model, given.file, given.input).to(device)[:1].repeat(given.batch, 1, 1, 1)
    fast = x.contiguous(memory_format=torch.channels_last)
    answer: dict[str, Any] = {"file": str(given.file), "batch": given.batch, "dtype": given.dtype}
    answer |= {"device": str(device), "threads": torch.get_num_threads()}
    timed: dict[str, Timed]
    if isinstance(model, Deployed):
        timed = {"deployed": (model.to(device), fast)}
    else:
        original, answer["memory_format"] = in_faster_format(model.to(device, dtype), x.to(dtype))
        timed = {"original": original, "deployed": (slimfast.deploy(model.to(device), x, dtype=dtype), fast)}
    with Display().working(f"timing {given.file} at batch {given.batch}") as progress:
        answer["latency"] = interleaved(timed, progress=progress)
    answer |= {f"{name}_ms": statistics.median(values) for name, values in answer["latency"].items()}
    _print(given, answer, lambda: show.latency(answer))


def _report(given: Namespace) -> None:
    page = report.write(given.run)
    _print(given, {"report": str(page)}, lambda: print(page))


def _psconv_table(given: Namespace) -> None:
    rows = psconv.counts()
    _print(given, {"rows": rows}, lambda: psconv.show(rows))


COMMANDS: Mapping[str, Callable[[Namespace], None]] = {
    "run": _run,
    "train": _train,
    "finetune": _finetune,
    "prune": _prune,
    "deploy": _deploy,
    "bench": _bench,
    "report": _report,
    "psconv-table": _psconv_table,
}


def _recipe(given: Namespace) -> Recipe:
    own = {"seed": given.seed, "device": given.device}
    extra = [f"{key}={json.dumps(value)}" for key, value in own.items() if value is not None]
    return load_recipe(given.recipe, [*given.set, *extra])


def _network(path: Path) -> nn.Module:
    """A network that can still be pruned or deployed."""
    model = slimfast.load(path)
    if isinstance(model, Deployed):
        raise ValueError(f"{path}: is deployed already; give the network it was made from")
    return model


def _print(given: Namespace, answer: Mapping[str, Any], in_words: Callable[[], None]) -> None:
    if given.json:
        print(json.dumps(answer, indent=1))
    else:
        in_words()
