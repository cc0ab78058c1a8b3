"""Recipes: what is accepted, and the one line for what is not."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import TinyNet, write_recipe

import slimfast
from slimfast import data
from slimfast.cli import main
from slimfast.optim import warn_if_unreachable
from slimfast.penalties import TL1
from slimfast.train import Recipe, RunError, UsageError, load_recipe
from slimfast.train.recipe_file import check, dump, first_difference, section_of, tomllib
from slimfast.train.setup import build_model, build_optimizer, build_schedule

SHIPPED = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
SMALLEST = {"name": "x", "model": {"name": "vgg19"}, "data": {"name": "cifar10"}, "train": {"epochs": 1}}

MISTAKES = [
    ("prune.ratio=1.5", r"prune\.ratio = 1\.5: accepted: a share of all channels, 0 <= ratio < 1$"),
    ("prune.ratio=-0.1", r"prune\.ratio = -0\.1: accepted: a share"),
    ("train.epochs=0", r"train\.epochs = 0: accepted: an integer of at least 1$"),
    ("train.epochs=1.5", r"train\.epochs = 1\.5: accepted: an integer"),
    ("train.epochs=true", r"train\.epochs = true: accepted: an integer"),
    ('train.epochs="8"', r'train\.epochs = "8": accepted: an integer'),
    ("train.epoch=3", r"train\.epoch: no such key; did you mean epochs\? \(known here: epochs\)$"),
    ("trian.epochs=3", r"trian: no such key; did you mean train\?"),
    ("optimizer.lr=nan", r"optimizer\.lr = NaN: accepted: a number above 0$"),
    ("optimizer.momentum=1.0", r"optimizer\.momentum = 1\.0: accepted: 0 <= momentum < 1$"),
    ("optimizer.method=proxy", r'optimizer\.method = "proxy": accepted: prox, subgradient or splitting$'),
    ("optimizer={momentum=0.0, nesterov=true}", r"optimizer: nesterov = true needs a momentum above 0$"),
    ("schedule.milestones=[0.5]", r"schedule: milestones and factor belong to kind = 'step'"),
    ("schedule={kind='step', milestones=[0.9, 0.1]}", r"milestones = \[0\.9, 0\.1\]: accepted: increasing"),
    (
        "model.name=smal_cnn",
        r"model\.name: no such name: 'smal_cnn'; did you mean small_cnn\? \(accepted: vgg19",
    ),
    ("data.name=cifar-10", r"data\.name: no such name: 'cifar-10'; did you mean cifar10\?"),
    ("data.batch_size=1", r"data\.batch_size = 1: accepted: an integer of at least 2$"),
    ("data.validation=1.0", r"data\.validation = 1\.0: accepted: a share of the training set"),
    ("penalty.kind=TL2", r"penalty: .*TL1"),
    ("penalty.lam=-1.0", r"penalty: .*lam.*-1"),
    ("penalty.q=3", r"penalty: .*q"),
    ("penalty={kind='GroupLasso', lam=1.0}", r"penalty: GroupLasso needs groups of numbers; a BN scale"),
    ("optimizer.beta=0.0", r"optimizer\.beta = 0\.0: accepted: a number above 0, the coupling"),
    ("conv_penalty={kind='GroupLaso', lam=1.0}", r"conv_penalty: .*'GroupLaso' is none of .*GroupLasso"),
    ("conv_penalty={kind='GroupLasso', lam=1.0, dim=2}", r"conv_penalty: .*dim = 2.*accepted: 0 .*or 1"),
    (
        "conv_penalty={kind='SparseGroup', elementwise=1.0, group_lam=1.0}",
        r"conv_penalty: .*elementwise = 1\.0",
    ),
    ('penalty={kind="GroupLasso",lam=1e-4}', r"penalty: .*GroupLasso needs groups"),
    ("prune={ratio=0.5, threshold=0.1}", r"prune: give ratio or threshold, not both"),
    ("device=tpu", r'device = "tpu": accepted: auto, cpu'),
    ("deploy=3", r"deploy = 3: accepted: a section of that name$"),
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_are_accepted(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    without = recipe.psconv is not None and path.stem != "psconv-demo"  # as the paper trains
    assert recipe.build_penalties() == {} if without else isinstance(recipe.build_penalties()["bn"], TL1)


def test_papers_settings() -> None:
    papers = [load_recipe(path) for path in SHIPPED if path.stem != "demo" and "psconv" not in path.stem]
    assert {recipe.model.name for recipe in papers} == {"vgg19", "resnet164", "densenet40"}
    for recipe in papers:
        assert (recipe.train.epochs, recipe.data.batch_size, recipe.data.augment) == (
            160,
            64,
            "pad-crop-flip",
        )
        assert (recipe.optimizer.lr, recipe.optimizer.momentum, recipe.optimizer.weight_decay) == (
            0.1,
            0.9,
            1e-4,
        )
        assert (recipe.schedule.milestones, recipe.schedule.factor) == ([0.5, 0.75], 0.1)
        assert recipe.finetune is not None
        assert recipe.finetune.epochs == 160


@pytest.mark.parametrize(("override", "message"), MISTAKES, ids=[override for override, _ in MISTAKES])
def test_a_mistake_is_one_line(tmp_path: Path, override: str, message: str) -> None:
    path = write_recipe(tmp_path)
    with pytest.raises(UsageError, match=message) as caught:
        load_recipe(path, [override])
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name = ", "not a TOML file"),
        (b"name = '\xff'", "not a TOML file"),
        (b"name = 'x'", "model: missing"),
        (b"name = 'x'\nmodel = {}", r"model\.name: missing"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"^{path}: {message}"):
        load_recipe(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no\.toml: cannot be read: No such file"):
        load_recipe(tmp_path / "no.toml")


@pytest.mark.parametrize("override", ["nonsense", "=1", "train.=1", "name.x=1"])
def test_an_override_that_is_none(tmp_path: Path, override: str) -> None:
    with pytest.raises(UsageError, match=rf"^--set {override}: "):
        load_recipe(write_recipe(tmp_path), [override])


def test_overrides_reach_their_keys(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path), ["train.epochs=9", "name=a b", "prune.ratio=0.5", "seed=7"])
    assert (recipe.train.epochs, recipe.name, recipe.prune.ratio, recipe.seed) == (9, "a b", 0.5, 7)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_dump_reads_back_equal(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    copy = tmp_path / "copy.toml"
    copy.write_text(dump(recipe))
    assert load_recipe(copy) == recipe
    assert first_difference(load_recipe(copy), recipe) is None


@given(
    name=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
    lr=st.floats(min_value=1e-300, max_value=1e300),
    args=st.dictionaries(
        st.from_regex(r"\A[a-z_]{1,8}\Z"), st.booleans() | st.integers(-9, 9) | st.floats(-1, 1)
    ),
)
def test_any_dump_reads_back_equal(name: str, lr: float, args: dict[str, float]) -> None:
    given = {**SMALLEST, "name": name, "optimizer": {"lr": lr}, "model": {"name": "vgg19", "args": args}}
    recipe = check(given, "here")
    assert check(tomllib.loads(dump(recipe)), "there") == recipe


def test_differences_name_the_key(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    old = load_recipe(path)
    assert first_difference(old, load_recipe(path, ["train.epochs=5"])) == "train.epochs was 8, is 5"
    assert first_difference(old, load_recipe(path, ["prune.ratio=0.5"])) == "prune.ratio was nothing, is 0.5"
    without = Recipe.model_validate({k: v for k, v in old.model_dump().items() if k != "baseline"})
    assert first_difference(old, without) == "baseline was {}, is nothing"


def test_every_key_is_documented() -> None:
    page = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()
    for key in Recipe.model_fields:
        section = section_of(Recipe, key)
        if section is None:
            assert f"| `{key}` |" in page or f"`[{key}]`" in page
            continue
        chapter = page.partition(f"## `[{key}]`")[2].partition("\n## ")[0]
        for name, field in section.model_fields.items():
            row = next(line for line in chapter.splitlines() if line.startswith(f"| `{name}` |"))
            assert field.description in row
            if not field.is_required() and field.default is not None:
                assert f"| `{json.dumps(field.default)}` |" in row


def test_splittings_and_convolutions(tmp_path: Path) -> None:
    """A checkpoint carries the auxiliary variable, and what a stage leaves is the sparse one."""
    overrides = ["method=splitting", "splitting=alternating", "beta=3.0", "lr=0.3"]
    inner = "{kind='L0', lam=1e-5}"
    penalty = f"conv_penalty={{kind='SparseGroup', elementwise={inner}, group_lam=0.002, dim=1}}"
    arguments = ["train", str(write_recipe(tmp_path)), "--set", penalty, "--set", "penalty.lam=0.03"]
    for override in overrides:
        arguments += ["--set", f"optimizer.{override}"]
    for out, epochs in (("straight", (8,)), ("resumed", (8, 8))):
        for _ in epochs:
            assert main([*arguments, "--out", str(tmp_path / out), "--resume"]) == 0
            (tmp_path / out / "sparse.safetensors").rename(tmp_path / f"{out}.safetensors")
    straight, resumed = (slimfast.load(tmp_path / f"{out}.safetensors") for out in ("straight", "resumed"))
    for name, weight in straight.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name])
    assert (straight.bn1.weight == 0).any() or (straight.bn2.weight == 0).any()
    assert (straight.conv2.weight == 0).any()


def test_a_method_that_the_penalty_does_not_take(tmp_path: Path) -> None:
    overrides = ["penalty={kind='L0', lam=1.0}", "optimizer.method=subgradient"]
    recipe = load_recipe(write_recipe(tmp_path), overrides)
    with pytest.raises(RunError, match=r"^model tiny_run:TinyNet: .*'subgradient' has no effect with L0"):
        build_optimizer(recipe, TinyNet(10, 1), 0.1, recipe.build_penalties())


@pytest.mark.long
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_penalties_can_reach_zero(path: Path) -> None:
    recipe = load_recipe(path)
    embedded = recipe.data.name == "fashion-mini"
    pictures = data.load("fashion-mini")[0]
    count = round((1 - recipe.data.validation) * (len(pictures) if embedded else 50_000))
    model = build_model(recipe.model, pictures)
    optimizer = build_optimizer(recipe, model, recipe.optimizer.lr, recipe.build_penalties())
    schedule = build_schedule(recipe, recipe.optimizer.lr)
    steps = recipe.train.epochs * math.ceil(count / recipe.data.batch_size)
    warn_if_unreachable(optimizer, [schedule(step, steps) for step in range(steps)])
