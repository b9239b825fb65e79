"""Models sharded over processes with PyTorch's FSDP2, configured by `accelerate launch`."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor


def launched_sharded() -> bool:
    """Return True if this process was launched to shard its model.

    Raises:
        ValueError: if it was launched with DeepSpeed or FSDP1, which training does not support.
    """
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise ValueError(
            "training does not run under DeepSpeed; launch with FSDP2, which shards as ZeRO-3 does: accelerate launch "
            "--config_file train/configs/accelerate/fsdp2_8gpu.yaml"
        )
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ValueError(f"training shards with FSDP2, got fsdp_version {version}; set fsdp_version: 2 in fsdp_config")
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def shard(model: Any, device: torch.device, bf16: bool) -> None:
    """Shard `model` in place over all processes, layer by layer. Shards replace its parameters.

    Layers are the modules in transformers' `_no_split_modules`. Trained parameters are kept in float32, frozen ones in
    their own precision; with `bf16` both are gathered in bfloat16, and gradients are summed in float32.
    """
    plugin = FullyShardedDataParallelPlugin()  # reads the settings of accelerate's launcher
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise ValueError("training keeps the shards on their devices; set fsdp_offload_params: false")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    settings: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (torch.distributed.get_world_size(),)),
        "reshard_after_forward": plugin.reshard_after_forward,
        "mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy(),
    }
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = set(getattr(inner, "_no_split_modules", None) or ())
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, **settings)
    fully_shard(model, **settings)


def local_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor: its shard, or the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return the full tensor of one that may be sharded. All processes must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: nn.Module, is_main: bool) -> dict[str, Tensor]:
    """Return the full state dict of a sharded model on the main process, an empty one on the others.

    All processes must call this together.
    """
    gathered = {}
    for name, value in model.state_dict().items():
        value = whole(value)
        if is_main:
            gathered[name] = value.cpu()
    return gathered


def wait_for_all(processes: int) -> None:
    """Wait until all processes have called this."""
    if processes > 1:
        torch.distributed.barrier()
