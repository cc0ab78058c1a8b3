"""Data-parallel training on two processes: DistributedDataParallel averages gradients, ProxSGD does the rest.

Each process takes the same proximal step on the same averaged gradients, and its controller sees the same
zeros: scales become zero everywhere at once, weights stay identical to the last bit, nothing else is sent.

Run:  python examples/ddp.py         (half a minute on two CPU cores; on GPUs: "nccl", torchrun)
"""

import tempfile
from pathlib import Path

import torch
from torch import distributed, multiprocessing
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import slimfast
from slimfast import data, models
from slimfast.optim import ProxSGD, SparsityController, zero_share
from slimfast.penalties import L1


def work(rank: int, world: int, folder: str, steps: int) -> None:
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = models.small_cnn()
    optimizer = ProxSGD(slimfast.param_groups(model, bn=L1(lam=0.01)), lr=0.1, momentum=0.9)
    controller = SparsityController(optimizer, target=0.5, steps=steps * 7 // 10)
    parallel = DistributedDataParallel(model)

    mine = data.load("fashion-mini")[0].subset(range(rank, 12_000, world))  # every process has other pictures
    loader = data.Loader(mine, batch_size=32, shuffle=True, augment="flip")
    for _, (x, y) in zip(range(steps), loader, strict=False):
        loss = F.cross_entropy(parallel(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        controller.step()

    print(f"rank {rank}: loss {loss.item():.3f}, {zero_share(optimizer):.1%} of the scales are exactly zero")
    torch.save([p.detach() for p in model.parameters()], Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def main(steps: int = 180, world: int = 2) -> None:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(work, (world, folder, steps), nprocs=world)
        first, *others = (torch.load(Path(folder) / f"{rank}.pt") for rank in range(world))
    same = all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))
    print(f"the processes' weights are identical: {same}")


if __name__ == "__main__":
    main()
