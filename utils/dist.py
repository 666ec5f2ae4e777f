"""One process or several: the same script under `python` and under `torchrun`."""

import datetime
import os
import signal

import torch
import torch.distributed as torch_dist

from utils.errors import UserError

PATIENCE = datetime.timedelta(minutes=10)  # so long a process waits for another, which may have gone
AMP_DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # of --amp


def init(device=None):
    """(rank, world, device). device: "cpu", "cuda", or None for a GPU where there is one."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU is visible; --device cpu runs the same script")
    if device != "cpu" and not device.startswith("cuda"):
        raise UserError(f"--device {device}: give cpu or cuda")
    if "RANK" not in os.environ:
        return 0, 1, torch.device(device)
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    store, rank, world = next(torch_dist.rendezvous("env://", timeout=PATIENCE))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # torchrun's store outlives a restart, and a process would call on addresses of the dead
        # (pytorch/pytorch#135712). On several machines counts differ; docs/reliability.md says what to do
        store = torch_dist.PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    torch_dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    return torch_dist.get_rank(), torch_dist.get_world_size(), torch.device(device)


def is_first():
    """Whether this process is the one that writes, before the processes have met."""
    return os.environ.get("RANK", "0") == "0"


def world():
    """How many processes this run has, whether they have met or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def default_amp(device):
    """The precision of the forward pass where none is asked for."""
    return "bf16" if device.type == "cuda" else "off"


def total(tensor):
    """The sum of a tensor over all processes; the tensor itself where there is one."""
    if torch_dist.is_initialized():
        tensor = tensor.clone()
        torch_dist.all_reduce(tensor)
    return tensor


def mean(figures, device):
    """{name: float}: the mean of each figure (numbers or scalar tensors) over the processes that know it; NaN
    means not known."""
    values = torch.stack([torch.as_tensor(v, device=device).double() for v in figures.values()])
    known = total((~values.isnan()).double())
    means = total(values.masked_fill(values.isnan(), 0.0)) / known
    return dict(zip(figures, means.tolist(), strict=True))


def gather_rows(tensor, n):
    """Rows of the whole from strided shards: rank r holds rows r, r + world, ... of n."""
    if not torch_dist.is_initialized():
        return tensor
    world = torch_dist.get_world_size()
    rank = torch_dist.get_rank()
    whole = torch.zeros(n, *tensor.shape[1:], dtype=tensor.dtype, device=tensor.device)
    whole[rank::world] = tensor
    torch_dist.all_reduce(whole)
    return whole


def is_loss(error):
    """Whether an error of a collective says that another process has ended or kept silent."""
    return isinstance(error, torch_dist.DistError) or "/gloo/" in str(error)


def finish():
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def ignore_signals(worker):
    """For a DataLoader's workers: the parent alone decides when to stop."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class Stopped(SystemExit):
    """Ends the process for a second signal: not to be taken for a `sys.exit` of somebody else's code."""


class Stop:
    """Asks a loop to save and leave: SIGTERM or Ctrl-C, once. A second one ends the process."""

    def __init__(self):
        self.signal = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number, frame):
        if self.signal:
            raise Stopped(128 + number)
        self.signal = number

    def asked(self, device):
        """The signal number any process got, on all processes alike; 0 for none."""
        if not torch_dist.is_initialized():
            return self.signal
        highest = torch.tensor(self.signal, device=device)
        torch_dist.all_reduce(highest, torch_dist.ReduceOp.MAX)
        return int(highest)
