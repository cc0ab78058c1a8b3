"""Sparse group lasso with L0: whole filters become zero and are pruned, and single weights in the others.

SparseGroup penalises each weight with lam [w != 0] and each filter with group_lam sqrt(size) ||filter||; its
proximal operator is the exact one of the sum. Convolutions of any network take it; no BatchNorm is needed.

Run:  python examples/sparse_group_lasso.py       (a minute on two CPU cores; pictures are inside the package)
"""

import torch
from torch.nn import functional as F

import slimfast
from slimfast import data, models
from slimfast.optim import PenaltyRamp, ProxSGD, zero_share
from slimfast.penalties import L0, SparseGroup


def main(epochs: int = 4, pictures: int = 12_000, lam: float = 3e-6, group_lam: float = 1e-3) -> None:
    torch.manual_seed(0)
    train, test = data.load("fashion-mini")
    loader = data.Loader(train.subset(range(pictures)), batch_size=64, shuffle=True, augment="flip")
    model = models.small_cnn()

    groups = slimfast.param_groups(model, conv=SparseGroup(L0(lam), group_lam))
    optimizer = ProxSGD(groups, lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    steps = epochs * len(loader)
    schedules = [
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
        PenaltyRamp(optimizer, steps // 4, shape="cubic"),  # learn first, then select
    ]
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for schedule in schedules:
                schedule.step()
        filters, weights = zero_share(optimizer, of="groups"), zero_share(optimizer)
        zeros = f"{filters:.1%} of the filters, {weights:.1%} of their weights"
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, exactly zero: {zeros}")

    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in data.Loader(test, batch_size=250))
    print(f"{right / len(test):.2%} of the test pictures are right")
    result = slimfast.prune(model, torch.zeros(1, 1, 28, 28))  # zero filters go
    print(result.report)


if __name__ == "__main__":
    main()
