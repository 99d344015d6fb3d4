"""Factories as a user of ditcache-opt would write them, good and bad."""

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attn = nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x, emb):
        x = x + self.attn(self.norm(x)) * emb[:, None]
        return x + self.mlp(self.norm(x))


class Net(nn.Module):
    def __init__(self, depth=2):
        super().__init__()
        self.time = nn.Linear(1, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, hidden_states, timestep):
        emb = self.time(timestep[:, None])
        for block in self.blocks:
            hidden_states = block(hidden_states, emb)
        return hidden_states


class Breaks(nn.Module):
    def forward(self, x):
        print("a graph break")
        return x + 1


def make(depth=2):
    inputs = torch.randn(2, 16, 8), torch.tensor([5.0, 5.0])
    return Net(depth).eval(), inputs, {}


def by_name():
    module, (x, t), _ = make()
    return module, {"hidden_states": x, "timestep": t}


def other():
    return make(3)


def raises():
    raise RuntimeError("no such thing\nwith a second line")


def gives_nonsense():
    return 3


def wrong_shape():
    return Net().eval(), (torch.randn(2, 16, 5), torch.tensor([5.0, 5.0])), {}


def graph_break():
    return Breaks(), (torch.randn(2, 2),), {}
