"""What must be set before anything imports torch or Triton, whichever test is collected first."""

import os

# On a machine with other work to do, spinning OpenMP threads make small tests ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
