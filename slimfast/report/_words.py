"""What happened, in sentences: only what the run folder says, losses as plainly as gains."""

from collections.abc import Callable
from dataclasses import dataclass

from slimfast.report import _text
from slimfast.report._run import Run, Summary


@dataclass(frozen=True)
class Tile:
    """One number before and after."""

    label: str
    before: float
    after: float
    write: Callable[[float], str]
    change: str

    @property
    def width(self) -> float:
        """Percent of the bar that is left; a growth fills it."""
        return min(100 * self.after / self.before, 100) if self.before else 0


def tiles(summary: Summary) -> list[Tile]:
    """Channels, parameters, MACs and latency, those that this run has."""
    sizes = (
        ("Channels", summary.channels_total, summary.channels_kept, _text.count),
        ("Parameters", summary.params_before, summary.params_after, _text.compact),
        ("MACs per picture", summary.macs_before, summary.macs_after, _text.compact),
    )
    found = [
        Tile(label, before, after, write, _text.share_removed(before, after))
        for label, before, after, write in sizes
        if before is not None and after is not None
    ]
    if summary.dense_ms and summary.deployed_ms:
        change = _text.speed(summary.dense_ms, summary.deployed_ms)
        found.append(
            Tile("Time per batch", summary.dense_ms, summary.deployed_ms, _text.milliseconds, change)
        )
    return found


def headline(run: Run) -> str:
    """The run in one sentence."""
    s = run.summary
    accuracy = _final_accuracy(s)
    if s.channels_total is None or s.channels_kept is None:
        reached = f" and reaches {_text.percent(accuracy)} accuracy" if accuracy is not None else ""
        return f"{s.name} trained for {_epochs(len(run.epochs))}{reached}."
    work = f"runs {_text.speed(s.dense_ms, s.deployed_ms)}" if s.dense_ms and s.deployed_ms else "works"
    sentence = (
        f"{s.name} {work} on {_text.count(s.channels_kept)} of its {_text.count(s.channels_total)} channels"
    )
    if accuracy is not None:
        sentence += f", at {_text.percent(accuracy)} accuracy"
    if s.dense_accuracy is not None and accuracy is not s.dense_accuracy:
        sentence += f" (dense: {_text.percent(s.dense_accuracy)})"
    return sentence + "."


def _final_accuracy(s: Summary) -> float | None:
    """Of the latest stage that the run has reached."""
    pruned = (s.deployed_accuracy, s.finetuned_accuracy, s.pruned_accuracy)
    stages = (*pruned, s.sparse_accuracy, s.dense_accuracy)
    return next((accuracy for accuracy in stages if accuracy is not None), None)


def story(run: Run) -> str:
    """How it came about: zeros, exact removal, fine-tuning."""
    sparse, tuned, dense = run.stage("sparse"), run.stage("finetune"), run.stage("dense")
    s = run.summary
    told = []
    if sparse and (found := run.zeros()):
        share = _text.percent(found[0] / found[1], 1)
        trained = f"After {_epochs(len(sparse))} of sparse training"
        told.append(f"{trained}, {share} of the BatchNorm scales were exactly zero.")
    if s.channels_total is not None and s.channels_kept == s.channels_total:
        told.append("No channel was removed.")
    elif s.max_abs_output_difference is not None:
        told.append(f"{_removal(s)} changed {_change(s)}.")
    if tuned:
        told.append(f"Fine-tuning took {_epochs(len(tuned))} more.")
    if dense and sparse:
        told.append(f"The dense network for comparison trained for {_epochs(len(dense))}.")
    return " ".join(told)


def _removal(s: Summary) -> str:
    if s.channels_total is None or s.channels_kept is None:
        return "Pruning"
    return f"Removing {_plural(s.channels_total - s.channels_kept, 'channel')}"


def _change(s: Summary) -> str:
    """What the surgery did to the outputs and, where they were counted, to the predictions."""
    difference = s.max_abs_output_difference
    moved = f"no output by more than {_text.scientific(difference)}" if difference else "no output at all"
    if s.predictions_changed is None:
        return moved
    predictions = (
        "no prediction" if s.predictions_changed == 0 else _plural(s.predictions_changed, "prediction")
    )
    return f"{predictions}, and {moved}"


def gamma_heading(run: Run) -> str:
    """What the heat map shows, as a finding where there is one."""
    zeros, total = run.zeros() or (0, 0)
    if not zeros:
        return "The scales over the epochs"
    return f"The scales split: {_text.count(zeros)} become exactly zero, {_text.count(total - zeros)} survive"


def latency_note(summary: Summary) -> str:
    """How the times were taken."""
    runs = min((len(values) for values in summary.latency.values() if values), default=0)
    told = [f"{runs} interleaved runs each, one dot per run, the median as a bar."]
    if summary.batch:
        dtype = f" in {summary.dtype}" if summary.dtype else ""
        told.append(f"A batch is {_plural(summary.batch, 'picture')}{dtype}.")
    if summary.dense_memory_format:
        told.append(f"Dense runs in its faster memory format, {summary.dense_memory_format}.")
    return " ".join(told)


def facts(run: Run) -> list[tuple[str, str]]:
    """The machine and the seed."""
    s = run.summary
    stages = " · ".join(f"{stage} {_text.duration(seconds)}" for stage, seconds in s.stages.items())
    rows = (
        ("Processor", s.cpu),
        ("GPU", s.gpu),
        ("Threads", s.threads),
        ("PyTorch", s.torch),
        ("Python", s.python),
        ("Seed", s.seed),
        ("Time taken", stages or None),
    )
    return [(label, str(value)) for label, value in rows if value is not None]


def _epochs(number: int) -> str:
    return _plural(number, "epoch")


def _plural(number: int, noun: str) -> str:
    return f"{_text.count(number)} {noun}{'' if number == 1 else 's'}"
