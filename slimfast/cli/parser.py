"""Arguments and help texts; imports nothing heavy, so that --help and a typo answer at once."""

import argparse
import math
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn


class _Parser(argparse.ArgumentParser):
    """One line for a mistake instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``slimfast``; ``command`` in its result is the subcommand's name."""
    parser = _Parser(
        prog="slimfast",
        description="Train a CNN to exact zeros, remove them without a change in its outputs, run it fast.",
        epilog="start here:  slimfast run recipes/demo.toml --out runs/demo",
    )
    parser.add_argument("--version", action="version", version=f"slimfast {version('slimfast')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    _add_training(commands)
    _add_prune(commands)
    _add_deploy(commands)
    _add_bench(commands)
    command = _add(
        commands,
        "report",
        "write report.html for a finished run",
        "slimfast report runs/demo",
    )
    command.add_argument("run", type=Path, metavar="DIR", help="the folder of a run")
    _add(
        commands,
        "psconv-table",
        "density, weights and MACs of pre-defined sparse VGG-16 and ResNet-18",
        "slimfast psconv-table",
    )
    return parser


def _add_training(commands: "argparse._SubParsersAction[_Parser]") -> None:
    run = _add(
        commands,
        "run",
        "a whole experiment: train, prune, fine-tune, deploy, measure, report",
        "slimfast run recipes/demo.toml --out runs/demo --set train.epochs=2",
    )
    train = _add(
        commands,
        "train",
        "only the sparse training of a recipe; ends with sparse.safetensors",
        "slimfast train recipes/demo.toml --out runs/sparse",
    )
    finetune = _add(
        commands,
        "finetune",
        "only the fine-tuning of a recipe, from a saved network; ends with finetuned.safetensors",
        "slimfast finetune recipes/demo.toml --from pruned.safetensors --out runs/tuned",
    )
    for command in (run, train, finetune):
        command.add_argument("recipe", type=Path, metavar="RECIPE.toml", help="what to do; see recipes/")
        command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for all results")
        command.add_argument("--resume", action="store_true", help="go on with the run that DIR holds")
        command.add_argument("--seed", type=int, metavar="N", help="instead of the recipe's seed")
        command.add_argument("--device", metavar="D", help="auto, cpu, cuda, cuda:1; instead of the recipe's")
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="key=value",
            help="another value for a key of the recipe, say penalty.lam=1e-3; may be given again",
        )
    finetune.add_argument("--from", dest="source", type=Path, metavar="FILE", help="network to start from")


def _add_prune(commands: "argparse._SubParsersAction[_Parser]") -> None:
    command = _add(
        commands,
        "prune",
        "remove channels of a saved network: exact zeros, or also the smallest scales",
        "slimfast prune sparse.safetensors --out pruned.safetensors --ratio 0.7",
    )
    _add_file(command)
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="the pruned network")
    command.add_argument(
        "--picture", type=Path, metavar="FILE.svg", help="draw every layer's channels before and after"
    )
    criterion = command.add_mutually_exclusive_group()
    criterion.add_argument("--ratio", type=_ratio, metavar="R", help="share of all channels, 0 <= R < 1")
    criterion.add_argument(
        "--threshold", type=_threshold, metavar="T", help="scales with |gamma| <= T go too"
    )
    for name, what in (
        ("macs", "multiply-accumulates"),
        ("params", "parameters"),
        ("latency", "time of a call"),
    ):
        says = f"scales go until at most this share of the {what} is left, 0 < S <= 1"
        criterion.add_argument(f"--{name}", type=_share, metavar="S", help=says)


def _add_deploy(commands: "argparse._SubParsersAction[_Parser]") -> None:
    command = _add(
        commands,
        "deploy",
        "turn a saved network into its fast, inference-only form",
        "slimfast deploy pruned.safetensors --out fast.safetensors",
        "slimfast.load reads the result, without the code of the model. For a process without slimfast there "
        "are --format onnx, and on CPUs --format pt2, which torch._inductor.aoti_load_package runs.",
    )
    _add_file(command)
    command.add_argument("--out", type=Path, metavar="FILE", help="default: FILE.deployed.safetensors")
    command.add_argument(
        "--format",
        choices=("safetensors", "onnx", "pt2"),
        default="safetensors",
        help="of the result; onnx and pt2 take images of one size, in batches of any size",
    )
    command.add_argument(
        "--explain", action="store_true", help="say which op each layer became, and why not a better one"
    )
    _add_numbers(command)


def _add_bench(commands: "argparse._SubParsersAction[_Parser]") -> None:
    command = _add(
        commands,
        "bench",
        "show where the time of a saved network goes, op by op, and how it compares",
        "slimfast bench pruned.safetensors --batch 128 --picture ops.svg",
        "The network is deployed if it is not. Each op: its time among the others, the bytes of its weights, "
        "inputs and results, its multiply-adds as 2 FLOPs each, and how near it is to the roofline, the time "
        "that a copy of as many bytes, or a large product of as many FLOPs, takes here. An op far "
        "below 100 % has room; one above finds its inputs in a cache. Then whole networks take turns: as "
        "saved, in its faster memory format, then under torch.compile, and deployed.",
    )
    _add_file(command)
    command.add_argument("--batch", type=_count, default=128, metavar="N", help="pictures per call (128)")
    command.add_argument(
        "--no-compile", action="store_true", help="leave torch.compile out, which takes long"
    )
    command.add_argument(
        "--autotune",
        action="store_true",
        help="the deployed network may use torch.compile where that is faster; takes minutes",
    )
    command.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw a bar for every op's time")
    _add_numbers(command)


def _add_numbers(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    command.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:1")


def _add_file(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", type=Path, metavar="FILE", help="a network that slimfast.save wrote")
    command.add_argument(
        "--input",
        type=_shape,
        metavar="NxCxHxW",
        help="shape of the pictures, say 1x3x32x32",
    )


def _add(
    commands: "argparse._SubParsersAction[_Parser]", name: str, summary: str, example: str, more: str = ""
) -> argparse.ArgumentParser:
    description = f"slimfast {name}: {summary}. {more}".strip()
    command = commands.add_parser(name, help=summary, description=description, epilog=f"example:  {example}")
    command.add_argument("--json", action="store_true", help="print the result as JSON and nothing else")
    return command


def _shape(text: str) -> tuple[int, ...]:
    parts = text.lower().split("x")
    if len(parts) != 4 or not all(part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: four sizes as in 1x3x32x32 are accepted")
    return tuple(map(int, parts))


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: an integer of at least 1 is accepted")
    return int(text)


def _ratio(text: str) -> float:
    return _number(text, lambda value: 0 <= value < 1, "a number with 0 <= ratio < 1")


def _threshold(text: str) -> float:
    return _number(text, lambda value: 0 <= value < math.inf, "a number of at least 0")


def _share(text: str) -> float:
    return _number(text, lambda value: 0 < value <= 1, "a number with 0 < share <= 1")


def _number(text: str, fits: Callable[[float], bool], accepted: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not fits(value):
        raise argparse.ArgumentTypeError(f"{text!r}: {accepted} is accepted")
    return value
