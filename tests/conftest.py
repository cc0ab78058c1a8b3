"""Runs Triton kernels in its interpreter, said before triton is first imported, and torch on one thread."""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch

torch.set_num_threads(1)  # tests run side by side; waiting for each other would take most of the time
