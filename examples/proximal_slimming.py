"""Proximal slimming: scales stay dense while they train, and a sparse copy of them is what pruning reads.

The method "splitting" couples every BatchNorm scale to an auxiliary variable that the penalty makes zero. It
is optimizer state, so checkpoints hold it, and apply_prox_() writes it into the network. BetaGrowth tightens
the coupling meanwhile, and SparsityController finds the penalty's weight for the zeros that are wanted.

Run:  python examples/proximal_slimming.py       (two minutes on two CPU cores; pictures are in the package)
"""

import torch
from torch.nn import functional as F

import slimfast
from slimfast import data, models
from slimfast.optim import BetaGrowth, ProxSGD, SparsityController, zero_share
from slimfast.penalties import L1


def train(model: torch.nn.Module, loader: data.Loader, epochs: int, optimizer: ProxSGD, *schedules) -> None:
    lr_schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for x, y in loader:
            loss = F.cross_entropy(model.train()(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for schedule in (lr_schedule, *schedules):
                schedule.step()
        zeros = f", {zero_share(optimizer):.1%} of the copy is exactly zero" if schedules else ""
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}{zeros}")


@torch.no_grad()
def right(model: torch.nn.Module, loader: data.Loader) -> str:
    return f"{torch.cat([model.eval()(x).argmax(1) == y for x, y in loader]).float().mean():.2%} are right"


def main(epochs: int = 4, pictures: int = 12_000, lam: float = 1e-3, target: float = 0.6) -> None:
    torch.manual_seed(0)
    pictures_train, pictures_test = data.load("fashion-mini")
    loader = data.Loader(pictures_train.subset(range(pictures)), 64, shuffle=True, augment="flip")
    test, steps, model = data.Loader(pictures_test, 250), epochs * len(loader), models.small_cnn()

    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    groups = slimfast.param_groups(model, bn=L1(lam))
    optimizer = ProxSGD(groups, method="splitting", splitting="alternating", beta=5.0, **settings)
    growth = BetaGrowth(optimizer, factor=1.25, every=steps // 10)
    train(model, loader, epochs, optimizer, growth, SparsityController(optimizer, target, steps * 7 // 10))
    print(f"dense scales: {right(model, test)}")
    optimizer.apply_prox_()
    pruned = slimfast.prune(model, torch.zeros(1, 1, 28, 28))
    print(f"their sparse copy, pruned: {right(pruned.model, test)}")
    train(pruned.model, loader, max(1, epochs // 2), ProxSGD(pruned.model.parameters(), **settings))
    print(f"fine-tuned: {right(pruned.model, test)}\n{pruned.report}")


if __name__ == "__main__":
    main()
