"""Change one line of a training script, the optimizer's, and channels become exactly zero while it trains.

Run:  python examples/one_line.py        (a minute on two CPU cores; pictures are inside the package)
"""

import torch
from torch.nn import functional as F

import slimfast
from slimfast import data, models
from slimfast.optim import ProxSGD
from slimfast.penalties import TL1


def main(epochs: int = 4, pictures: int = 12_000) -> None:
    torch.manual_seed(0)
    train, test = data.load("fashion-mini")
    train = train.subset(range(pictures))
    loader = data.Loader(train, batch_size=64, shuffle=True, augment="flip")
    model = models.small_cnn()

    # Was: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    groups = slimfast.param_groups(model, bn=TL1(lam=3e-3, a=0.5))
    optimizer = ProxSGD(groups, lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)

    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        scales = [m.weight for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        zeros = sum(int((weight == 0).sum()) for weight in scales)
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, {zeros} scales are exactly zero")

    example = torch.randn(1, 1, 28, 28)
    pruned = slimfast.prune(model, example)  # no ratio: only what is exactly zero goes
    fast = slimfast.deploy(pruned.model, example)
    x, _ = next(iter(data.Loader(test, batch_size=1000)))
    with torch.no_grad():
        before, after = model.eval()(x), pruned.model.eval()(x)
        print(f"pruned differs from trained by at most {(after - before).abs().max():.1e}")
        print(f"deployed differs by at most {(fast(x) - before).abs().max():.1e}")
    print(pruned.report)


if __name__ == "__main__":
    main()
