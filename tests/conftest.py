"""One thread: the sums in a test then have one order, and busy machines stay usable."""

import torch

torch.set_num_threads(1)
