"""The rounding that the exported model will suffer, so that it can be learned with."""

import torch
from torch import nn
from torch.nn.utils import parametrize

BLOCK = 32


class RoundToInt4(nn.Module):
    """Weights as ONNX Runtime's symmetric 4 bit `MatMulNBits` holds them, gradients unchanged.

    Every block of 32 inputs of an output has one scale, by which its largest weight becomes -8.
    """

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Round a weight of shape `[outputs, inputs]`."""
        blocks = weight.detach().view(weight.shape[0], -1, BLOCK)
        largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
        scale = torch.where(largest == 0, torch.ones_like(largest), largest / -8)
        rounded = (blocks / scale).round().clamp(-8, 7) * scale
        return weight + (rounded.view_as(weight) - weight.detach())


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    """The layers that the export quantizes."""
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)]


def start_rounding(model: nn.Module) -> None:
    """From now on every linear layer computes with rounded weights."""
    for layer in linear_layers(model):
        parametrize.register_parametrization(layer, "weight", RoundToInt4())


def stop_rounding(model: nn.Module) -> None:
    """Put the plain weights, as they are before rounding, back in place."""
    for layer in linear_layers(model):
        if parametrize.is_parametrized(layer):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
