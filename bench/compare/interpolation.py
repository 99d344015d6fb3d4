"""Frame interpolation networks for M6, from a path."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from .methods.base import MethodError


class MiddleFrames(nn.Module):
    """A network that makes the frame half-way, asked for frames at given times."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, before: Tensor, after: Tensor, time: Tensor) -> Tensor:
        """Interpolate; raises MethodError for any time but 0.5."""
        if bool(((time - 0.5).abs() > 1e-3).any()):
            raise MethodError(
                "M6: this network makes the frame half-way between two; the number of frames has "
                "to be 2 K - 1 for K keyframes"
            )
        return self.network(before, after)


def load_interpolator(where: Path | str, device: torch.device) -> nn.Module:
    """Load the small trained network (safetensors or its folder), or any TorchScript file.

    A TorchScript network has `forward(before, after, time)`; that is how a RIFE model is given.

    Raises:
        MethodError: there is no such network, or it cannot be read.

    """
    path = Path(where)
    if path.suffix in (".pkl", ".bin", ".ckpt"):
        raise MethodError(
            f"M6: {where} has weights without their network; trace it with torch.jit and save that "
            "as .pt, forward(before, after, time)"
        )
    try:
        if path.suffix in (".pt", ".pth", ".ts"):
            return torch.jit.load(str(path), map_location=device).eval()
        from ditcache.models.interpolation import FrameInterpolator
        from safetensors.torch import load_file

        network = FrameInterpolator()
        network.load_state_dict(load_file(path / "model.safetensors" if path.is_dir() else path))
        return MiddleFrames(network.to(device, torch.float32)).eval()
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise MethodError(f"M6: {where} is no interpolation network ({first})") from error
