"""Build and apply the update rule: optimizer, learning-rate schedule, clipping, averaged weights, mixed precision."""

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from pipeline.cuda_graphs import can_record
from pipeline.packing.backbone import Backbone
from pipeline.training.config import TrainConfig
from pipeline.training.muon import Muon


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Build Adam with L2 in the gradient on every parameter (GRID's rule), or AdamW with decoupled decay on matrices.

    AdamW leaves out vectors (norm gains) and the position-bias tables: pulling either towards zero means nothing.
    Muon trains the matrices of the layers; tables, heads and all else are AdamW's, as without it. No rule decays the
    parameters that a network names in `undecayed`.
    On a GPU the learning rate is a tensor in its memory, so that a CUDA graph reads it anew at each step.
    """
    device = next(model.parameters()).device
    on_gpu = can_record(device)
    rate = torch.tensor(config.learning_rate, device=device) if on_gpu else config.learning_rate
    spared: frozenset[str] = getattr(model, "undecayed", frozenset())
    if config.optimizer == "adam" and spared:
        others = [p for name, p in model.named_parameters() if name not in spared]
        alone = [p for name, p in model.named_parameters() if name in spared]
        groups = [{"params": others, "weight_decay": config.weight_decay}, {"params": alone, "weight_decay": 0.0}]
        return torch.optim.Adam(groups, rate, fused=True, capturable=on_gpu)
    if config.optimizer == "adam":
        return torch.optim.Adam(
            model.parameters(), rate, weight_decay=config.weight_decay, fused=True, capturable=on_gpu
        )
    named = dict(model.named_parameters())
    inside = _matrices_of_layers(model) if config.optimizer == "muon" else {}
    decayed = {
        name: p
        for name, p in named.items()
        if p.ndim > 1 and "bias" not in name and name not in inside and name not in spared
    }
    others = [p for name, p in named.items() if name not in decayed and name not in inside]
    groups = [
        {"params": list(decayed.values()), "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if config.optimizer == "muon":
        return Muon(list(inside.values()), groups, rate, config.weight_decay, on_gpu)
    return torch.optim.AdamW(groups, rate, fused=True, capturable=on_gpu)


def _matrices_of_layers(model: nn.Module) -> dict[str, Tensor]:
    """Return the matrices between a network's tables and its heads: of the linear layers in its lists of blocks."""
    return {
        f"{stack}.{name}.weight": linear.weight
        for stack, blocks in model.named_modules()
        if isinstance(blocks, nn.ModuleList) and stack.split(".")[-1] != "heads"
        for name, linear in blocks.named_modules()
        if isinstance(linear, nn.Linear)
    }


def learning_rate(config: TrainConfig, step: int, windows: int) -> float:
    """Return the rate of optimizer step `step` (from 0), before which `windows` windows were trained or skipped.

    The schedule runs over windows, not steps, and reaches zero at `max_windows`: a strategy that skips windows takes
    fewer steps through them, and its schedule has just as many.
    """
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    done = min(windows / config.max_windows, 1.0)
    fall = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    return config.learning_rate * warm * fall[config.schedule]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next update."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def backward(loss: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Add the gradients of `loss` to each parameter's `grad`, as `loss.backward()` does, but in one kernel for all."""
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    # Parameters that the loss does not depend on have no gradient.
    sums = list[Tensor]()
    added = list[Tensor]()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            sums.append(parameter.grad)
            added.append(gradient)
    torch._foreach_add_(sums, added)


def update(optimizer: torch.optim.Optimizer, config: TrainConfig) -> None:
    """Apply the summed gradients and clear them; on a GPU they become zeros, since a CUDA graph reads their memory."""
    clip(optimizer, config)
    optimizer.step()
    optimizer.zero_grad(set_to_none=not optimizer.defaults["capturable"])


def clip(optimizer: torch.optim.Optimizer, config: TrainConfig) -> None:
    """Shorten the gradients to the norm that `clip_norm` sets, if any."""
    if config.clip_norm:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, config.clip_norm)


class Average:
    """Average the weights exponentially over steps, in a second model that is evaluated and saved.

    The decay starts low, min(decay, (1 + step) / (10 + step)), so that the random first weights are soon forgotten
    (the rule of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, model: Backbone, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.weight = torch.zeros(
            (), device=next(model.parameters()).device
        )  # that the trained model has in the next update

    def set_weight(self, step: int) -> None:
        """Set the weight for the update after optimizer step `step` (from 0)."""
        self.weight.fill_(1 - min(self.decay, (1 + step) / (10 + step)))

    def pairs(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Return the model's parameters, each with its average."""
        return list(zip(model.parameters(), self.model.parameters(), strict=True))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights."""
        pairs = self.pairs(model)
        trained = [parameter for parameter, _ in pairs]
        averaged = [average for _, average in pairs]
        if not can_record(self.weight.device):
            torch._foreach_lerp_(averaged, trained, [self.weight] * len(averaged))
            return
        # A GPU would launch a kernel for each tensor of a lerp. Of these three calls each is one or two kernels.
        moves = torch._foreach_sub(trained, averaged)
        torch._foreach_mul_(moves, self.weight)
        torch._foreach_add_(averaged, moves)


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """Compute matrix products over float32 weights in bfloat16 where `precision` says so (auto: on a GPU)."""
    if config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda"):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
