"""The update rule: optimizer, learning-rate schedule, clipping, averaged weights, mixed precision."""

import copy
import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from pipeline.train.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam with L2 in the gradient on every parameter (GRID's rule), or AdamW with decoupled decay on matrices alone.

    AdamW leaves out vectors (norm gains) and the position-bias tables: pulling either towards zero means nothing.
    """
    if config.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True)
    decayed = {name: p for name, p in model.named_parameters() if p.ndim > 1 and "bias" not in name}
    others = [p for name, p in model.named_parameters() if name not in decayed]
    groups = [{"params": list(decayed.values()), "weight_decay": config.weight_decay},
              {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, config.learning_rate, fused=True)


def learning_rate(config: TrainConfig, step: int, windows: int) -> float:
    """The rate of optimizer step `step` (from 0), before which `windows` windows were trained or skipped.

    The schedule runs over windows, not steps, and reaches zero at `max_windows`: a strategy that skips windows takes
    fewer steps through them, and its schedule has just as many.
    """
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    done = min(windows / config.max_windows, 1.0)
    fall = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    return config.learning_rate * warm * fall[config.schedule]


def update(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, windows: int) -> None:
    """Apply the gathered gradients and clear them."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step, windows)
    if config.clip_norm:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, config.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class Average:
    """Exponential moving average of the weights, as a second model that is evaluated and saved.

    The decay starts low, min(decay, (1 + step) / (10 + step)), so that the random first weights are soon forgotten
    (the rule of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after optimizer step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager:
    """bfloat16 matrix products over float32 weights where `precision` says so (auto: on a GPU)."""
    if config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda"):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
