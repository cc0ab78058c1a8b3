"""What each subcommand does: read, call, print."""

import json
import statistics
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import slimfast
from slimfast import report
from slimfast.cli import psconv, show
from slimfast.cli.example import example_input
from slimfast.packed import EXPORTS, Deployed, profile, why_no_compiler
from slimfast.packed.out_of_memory import needs_memory
from slimfast.train import Display, Recipe, finetune, load_recipe, prepare, run_all, train
from slimfast.train.recipe import choose_device
from slimfast.train.timing import Timed, compiled, in_faster_format, interleaved


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
    criteria = {name: getattr(given, name) for name in ("ratio", "threshold", "macs", "params", "latency")}
    result = slimfast.prune(model, example_input(model, given.file, given.input), **criteria)
    slimfast.save(result.model, given.out)
    files = [str(given.out)]
    if given.picture is not None:
        files.append(str(report.write_layers(result.report, given.picture)))
    answer = dict(zip(("out", "picture"), files, strict=False)) | result.report.to_dict()
    _print(given, answer, lambda: print(result.report, *files, sep="\n"))


def _deploy(given: Namespace) -> None:
    device, form = choose_device(given.device), given.format
    suffix = f".{form}" if form in EXPORTS else f".deployed{given.file.suffix}"
    out = given.out or given.file.with_suffix(suffix)
    model = _network(given.file)
    example = example_input(model, given.file, given.input).to(device)
    dtype = getattr(torch, given.dtype)
    deployed = slimfast.deploy(model.to(device), example, dtype=dtype, explain=given.explain)
    if form in EXPORTS:
        with Display().working(f"making {out}"):
            EXPORTS[form](deployed, example, out)
    else:
        slimfast.save(deployed, out)
    answer = {"out": str(out), "format": form, "dtype": given.dtype, "device": str(device)}
    explanation = deployed.explanation
    answer |= {} if explanation is None else {"explanation": explanation.to_dict()}
    _print(given, answer, lambda: print(*filter(None, [explanation, out]), sep="\n"))


def _bench(given: Namespace) -> None:
    device, dtype = choose_device(given.device), getattr(torch, given.dtype)
    model = slimfast.load(given.file)
    one = example_input(model, given.file, given.input)[:1].to(device)
    with needs_memory("--batch", (given.batch, *one.shape[1:]), device):
        x = one.repeat(given.batch, 1, 1, 1)
    model = model.to(device)
    deployed = model if isinstance(model, Deployed) else slimfast.deploy(model, one, dtype=dtype)
    deployed.autotune = given.autotune
    answer: dict[str, Any] = {"file": str(given.file), "batch": given.batch, "device": str(device)}
    answer |= {"dtype": str(deployed.dtype).removeprefix("torch."), "threads": torch.get_num_threads()}
    with Display().working(f"timing the ops of {given.file} at batch {given.batch}") as progress:
        found = profile(deployed, x, progress=progress)
    answer["profile"] = found.to_dict()
    timed: dict[str, Timed] = {"deployed": (deployed, x.contiguous(memory_format=torch.channels_last))}
    if not isinstance(model, Deployed):
        original, answer["memory_format"] = in_faster_format(model.to(dtype), x.to(dtype))
        timed = {"original": original, **_compiled(given, model, x.to(dtype)), **timed}
    with Display().working(f"timing {' and '.join(timed)} in turns") as progress:
        answer["latency"] = interleaved(timed, progress=progress)
    answer |= {f"{name}_ms": statistics.median(values) for name, values in answer["latency"].items()}
    if given.picture is not None:
        answer["picture"] = str(report.write_ops(found, given.picture))
    _print(given, answer, lambda: show.bench(answer, found))


def _compiled(given: Namespace, model: nn.Module, x: Tensor) -> dict[str, Timed]:
    """The network under torch.compile, where it is wanted and can be had."""
    if given.no_compile:
        return {}
    if reason := why_no_compiler():
        Display().say(f"without torch.compile, which {reason}")
        return {}
    with Display().working("compiling with torch.compile"):
        return {"compiled": compiled(model, x)}


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
