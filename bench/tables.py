"""README's tables, made of the runs that bench/results keeps."""

import re
from collections.abc import Callable, Mapping, Sequence

from results import LOOP, Result, Run

NETS = {
    "resnet164": "ResNet-164, 494 tensors",
    "densenet40": "DenseNet-40, 119 tensors",
    "vgg19": "VGG-19, 50 tensors",
    "resnet50": "ResNet-50, 161 tensors",
}
SHORT = {name: label.partition(",")[0] for name, label in NETS.items()}
SHORT |= {"small_cnn": "small CNN", "resnet18": "ResNet-18"}
SHORT |= {f"resnet{depth}": f"ResNet-{depth}" for depth in (326, 650)}
SHORT |= {"mobilenet": "MobileNetV2, small", "shufflenet": "ShuffleNetV2, small", "senet": "SE-ResNet, small"}
SHORT |= {"resnext": "ResNeXt, small", "unet": "U-Net, small"}
WORDS = {1: "One core", 2: "Two cores", 4: "Four cores", 8: "Eight cores", 16: "Sixteen cores"}
NO_GPU = """\
Not yet measured: anything on a GPU. The Triton and CUDA kernels are checked in Triton's interpreter and
compiled for sm_80, sm_90 and sm_100 in the tests; on a machine with a GPU `bash bench/gpu.sh` builds,
checks and measures them, and `bench/report.py --keep --readme` fills a table here."""
PAT = "torchao PAT on SGD fused"


def rewrite(text: str, cpu: tuple[str, Run] | None, gpu: tuple[str, Run] | None) -> str:
    """The README with everything between its markers made anew from the named runs.

    Raises:
        ValueError: a marker that nothing fills, or one that never ends; a run without the results asked for.
    """
    parts: dict[str, Callable[[], str]] = {"gpu": lambda: on_gpu(*gpu) if gpu else NO_GPU}
    if cpu:
        parts |= {
            "deploy": lambda: deploy(cpu[1]),
            "step": lambda: step(cpu[1]),
            "groups": lambda: groups(cpu[1]),
            "pruning": lambda: pruning(cpu[1]),
            "pass": lambda: passes(cpu[1]),
            "machine": lambda: machine(*cpu),
        }

    def part(match: re.Match[str]) -> str:
        if match[1] not in parts:
            raise ValueError(f"marker bench:{match[1]}: only {', '.join(parts)} can be filled")
        return f"<!-- bench:{match[1]} -->\n{parts[match[1]]()}\n<!-- /bench -->"

    if text.count("<!-- bench:") != text.count("<!-- /bench -->"):
        raise ValueError("a marker <!-- bench:... --> without its <!-- /bench -->")
    return re.sub(r"<!-- bench:(\w+) -->\n.*?<!-- /bench -->", part, text, flags=re.DOTALL)


def machine(path: str, run: Run) -> str:
    facts = run.facts
    cores = WORDS.get(facts["cores"], f"{facts['cores']} cores")
    where = f"{cores} of an {facts['cpu']} ({facts['cpu_capability']})"
    return (
        f"{where}, torch {facts['torch'].partition('+')[0]}, float32; medians of one run,\n"
        f"the contenders taking turns (`{path}`; repeat with `make bench`)."
    )


def deploy(run: Run) -> str:
    """Inference: eager networks in the faster of their two memory formats."""
    heads = ["milliseconds per batch", "dense", "pruned", "pruned, `torch.compile`", "deployed"]
    rows = []
    for label, result in _asked(run, "test_forward").items():
        name, _, size, batch = label.split("-")
        times = [
            min(time for key, time in result.median_us.items() if key.startswith(kind)) / 1e3
            for kind in ("dense", "pruned, N", "pruned, torch.compile", "deployed")
        ]
        cells = [f"{time:.{0 if time >= 99.95 else 1 if time >= 1 else 2}f}" for time in times]
        rows.append([f"{SHORT[name]} {size}x{size}, batch {batch}", *_strong(cells, times)])
    return _markdown(heads, rows)


def step(run: Run) -> str:
    """A step with L1 on the BatchNorm scales, on as many threads as suit it; torch's best form of each."""
    heads = ["microseconds per step", "ProxSGD with L1", "SGD + BN loop", "SGD + foreach prox"]
    heads += ["SGD, no penalty", "torchao PAT", "share of one core's bandwidth"]
    steps, rows = _asked(run, "test_step"), []
    for name, label in NETS.items():
        result = steps[f"threads1-{name}"]
        compiled = _on_best_threads(run.of("test_compiled"), name)
        forms = _on_best_threads(steps, name) | _of_compiled(compiled)
        rivals = [best(forms, suffix) for suffix in (" + BN loop", " + foreach prox", "")]
        times = [forms[result.ours], *(time for time, _ in rivals)]
        texts = [_whole(times[0]), *(f"{_whole(time)} ({form})" for time, form in rivals)]
        pat = _whole(forms[PAT]) if PAT in forms else ""
        rows.append([label, *_strong(texts, times), pat, _share(result)])
    return _markdown(heads, rows)


def groups(run: Run) -> str:
    """A step with penalties on the filters of convolutions, as multiples of the plain step."""
    if not run.of("test_groups"):
        return "Not yet measured: penalties on filters."
    heads, rows = ["microseconds per step"], []
    for name, result in run.of("test_groups").items():
        variants = {key: time for key, time in result.median_us.items() if key not in result.floors}
        plain = variants[result.ours]
        heads = ["microseconds per step", *variants]
        cells = [f"{_whole(time)} ({time / plain:.2f}x)" for time in variants.values()]
        rows.append([SHORT[name], _whole(plain), *cells[1:]])
    return _markdown(heads, rows)


def pruning(run: Run) -> str:
    """By setting, for each pruner: error, channels removed, numbers and MACs left, seconds."""
    settings = {"zeros": "half of the scales zero", "chosen": "half of the channels chosen"}
    measured = run.of("test_pruners")
    names = list(dict.fromkeys(name for result in measured.values() for name in _pruners(result)))
    if not names:
        return "Not yet measured: pruners side by side."
    found = []
    for setting, label in settings.items():
        rows = [
            [SHORT[key.partition("-")[2]], *(_pruned(result, name) for name in names)]
            for key, result in measured.items()
            if key.startswith(setting)
        ]
        found.append(_markdown([label, *names], rows))
    return "\n\n".join(found)


def _pruners(result: Result) -> list[str]:
    """Those that were there, whether they managed or not."""
    failed = [name for name, reason in result.absent.items() if not reason.startswith("not installed")]
    return [*result.median_us, *failed]


def _pruned(result: Result, name: str) -> str:
    if name not in result.outcome:
        reason = result.absent.get(name, "")
        return "" if reason.startswith("not installed") else f"fails: {reason.partition(':')[0]}"
    dense, now = result.outcome["dense"], result.outcome[name]
    error = f"{now['error']:.0e}" if now["error"] < 1e-3 else f"{100 * now['error']:.0f} %"
    removed = f"\u2212{100 * (1 - now['channels'] / dense['channels']):.0f} %"
    shares = [f"{100 * now[key] / dense[key]:.0f} %" for key in ("numbers", "macs")]
    return ", ".join([error, removed, *shares, f"{result.median_us[name] / 1e6:.2f} s"])


def passes(run: Run) -> str:
    """The time of slimfast.prune, and what it is per node of the graph."""
    measured = {name: result for name, result in run.of("test_pass").items() if result.outcome}
    if not measured:
        return "Not yet measured: the pruning pass."
    rows = []
    for name, result in measured.items():
        nodes, time = result.outcome[result.ours]["nodes"], result.median_us[result.ours]
        rows.append([SHORT[name], f"{nodes:,}", f"{time / 1e6:.2f}", _whole(time / nodes)])
    return _markdown(["one core", "calls in the graph", "seconds", "microseconds per call"], rows)


def on_gpu(path: str, run: Run) -> str:
    """The step on a GPU: microseconds of the device / of the host, then of the device in CUDA graphs."""
    heads = ["microseconds, device / host", "ProxSGD with L1", "SGD + BN loop", "SGD + foreach prox"]
    heads += ["SGD, no penalty", "in CUDA graphs: ProxSGD", "SGD + BN loop", "SGD, no penalty"]
    steps, rows = _asked(run, "test_step"), []
    for name, label in NETS.items():
        result = steps[f"cuda-{name}"]
        compiled = run.of("test_compiled").get(f"cuda-{name}")
        device = result.device_us | _of_compiled(compiled.device_us if compiled else {})
        host = result.host_us | _of_compiled(compiled.host_us if compiled else {})
        cells = [f"{_whole(device[result.ours])} / {_whole(host[result.ours])}"]
        for suffix in (" + BN loop", " + foreach prox", ""):
            time, form = best(device, suffix)
            cells.append(f"{_whole(time)} / {_whole(host[f'SGD {form}{suffix}'])} ({form})")
        cells.append(_whole(device[f"{result.ours}, CUDA graph"]))
        cells += [_whole(best(device, f"{suffix}, CUDA graph")[0]) for suffix in (" + BN loop", "")]
        rows.append([label, *cells, _share(result)])
    facts = run.facts
    where = f"{facts['gpu']}, torch {facts['torch']}, float32; medians of one run (`{path}`)."
    return f"{_markdown([*heads, 'share of bandwidth'], rows)}\n\n{where}"


def best(forms: Mapping[str, float], suffix: str) -> tuple[float, str]:
    """The fastest of torch's forms that do the same, and its name."""
    pattern = re.compile(r"SGD (\w+)" + re.escape(suffix))
    return min((time, match[1]) for name, time in forms.items() if (match := pattern.fullmatch(name)))


def _on_best_threads(results: Mapping[str, Result], net: str) -> dict[str, float]:
    """Every form's median for the number of threads that suits it best."""
    times: dict[str, float] = {}
    for label, result in results.items():
        if re.fullmatch(rf"threads\d+-{net}", label):
            times |= {name: min(time, times.get(name, time)) for name, time in result.median_us.items()}
    return times


def _of_compiled(times: Mapping[str, float]) -> dict[str, float]:
    """The compiled forms of torch's step, which have a test of their own, without what ran beside them."""
    return {name: time for name, time in times.items() if name.startswith("SGD compiled")}


def _asked(run: Run, test: str) -> dict[str, Result]:
    results = run.of(test)
    if not results:
        raise ValueError(f"no results of {test}: only a whole `make bench` makes these tables")
    return results


def _share(result: Result) -> str:
    share = result.bandwidth(LOOP)
    return "" if share is None else f"{100 * share:.0f} %"


def _whole(microseconds: float) -> str:
    return f"{microseconds:,.0f}" if microseconds >= 99.95 else f"{microseconds:.1f}"


def _strong(cells: Sequence[str], values: Sequence[float]) -> list[str]:
    """The least value of a row stands out."""
    return [
        f"**{cell}**" if value == min(values) else cell for cell, value in zip(cells, values, strict=True)
    ]


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table without the columns that nothing was measured for."""
    shown = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line[i] for i in shown)} |" for line in lines)
