"""A torchvision backbone as a list of stages: real modules, so that hooks on a stage fire."""

from torch import nn


class Stages(nn.ModuleList):
    """Stages from the input side, each an `nn.Sequential` of blocks, to be called one after the other.

    prefixes: {beginning of a name in our state dict: its beginning in torchvision's}.
    """

    def __init__(self, stages, prefixes=()):
        super().__init__(stages)
        self.prefixes = dict(prefixes)

    def own_name(self, key):
        """`layer1.0.conv1.weight`, as torchvision calls it -> `1.1.conv1.weight`; other names stay."""
        return replace_prefix(key, {theirs: ours for ours, theirs in self.prefixes.items()})

    def torchvision_name(self, key):
        """The inverse of `own_name`."""
        return replace_prefix(key, self.prefixes)


def replace_prefix(key, prefixes):
    for old, new in prefixes.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def cut(blocks, ends):
    """`Stages` of [(name in torchvision's state dict, module)]. ends: after how many blocks each ends."""
    parts = [blocks[i:j] for i, j in zip([0, *ends[:-1]], ends, strict=True)]
    prefixes = {f"{i}.{j}.": f"{name}." for i, part in enumerate(parts) for j, (name, _) in enumerate(part)}
    return Stages([nn.Sequential(*(module for _, module in part)) for part in parts], prefixes)


def values_of(*modules):
    """The tensors in the state dicts of modules, a list, without BatchNorm's count of batches."""
    states = [module.state_dict() for module in modules]
    return [value for state in states for key, value in state.items() if "num_batches_tracked" not in key]


def read_torchvision_names(model, state, prefix, *_):
    """A hook before `load_state_dict`: what is called backbone.NAME, with torchvision's NAME, as in
    checkpoints of format 1 and in torchvision's segmentation networks, becomes a part of `model.stages`."""
    begin = f"{prefix}backbone."
    for key in [key for key in state if key.startswith(begin)]:
        state[f"{prefix}stages.{model.stages.own_name(key.removeprefix(begin))}"] = state.pop(key)
