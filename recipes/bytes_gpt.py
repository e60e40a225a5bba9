"""A small transformer that reads Python source byte by byte: below 2.3 bits per byte in five minutes on two cores.

    python recipes/data.py stdlib data/stdlib
    headrace pack data/stdlib data/stdlib-shards --format tokens --transform recipes/bytes_gpt.py:to_tokens \
        --split train=0.95,test=0.05
    headrace train recipes/bytes_gpt.py --nproc 2
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

import headrace as hr

VOCABULARY = 256
END = 0  # a byte that source files do not have, between two files


def to_tokens(sample):
    """A source file's bytes as tokens; for `headrace pack --transform`."""
    text = np.frombuffer(sample["py"], dtype=np.uint8).astype(np.uint16)
    return {"__key__": sample["__key__"], "tokens": np.append(text, np.uint16(END))}


def turned(x):
    """Queries or keys with each pair of channels turned by an angle that grows with the place (rotary positions)."""
    time, half = x.shape[-2], x.shape[-1] // 2
    places = torch.arange(time, device=x.device)
    angles = torch.outer(places, 10_000 ** (-torch.arange(half, device=x.device) / half))
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class Block(nn.Module):
    """Causal attention and a feed-forward layer, each after a norm and added to what came in: (batch, time, width)."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.before_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        batch, time, width = x.shape
        parts = self.qkv(self.before_attention(x)).view(batch, time, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(turned(query), turned(key), value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, time, width))
        return x + self.mlp(self.before_mlp(x))


class Transformer(nn.Module):
    """Bytes (batch, time) to logits of the next ones (batch, time, 256).

    Each byte comes with a weighted sum of the four up to it, which saves the first layer from finding its neighbours.
    """

    def __init__(self, layers, width, heads):
        super().__init__()
        self.bytes = nn.Embedding(VOCABULARY, width)
        self.near = nn.Conv1d(width, width, 4, groups=width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        # Every block begins as the identity, and every byte as equally likely.
        for weight in (
            self.head.weight,
            *(w for block in self.blocks for w in (block.out.weight, block.mlp[2].weight)),
        ):
            nn.init.zeros_(weight)

    def forward(self, tokens):
        x = self.bytes(tokens)
        before = nn.functional.pad(x.transpose(1, 2), (3, 0))
        return self.head(self.norm(self.blocks(x + self.near(before).transpose(1, 2))))


def before(batch):
    """All tokens of a window but the last."""
    return batch["tokens"].int()[:, :-1]


def next_byte(output, batch):
    """Cross-entropy of each next byte, and the same in bits."""
    following = batch["tokens"].long()[:, 1:]
    loss = nn.functional.cross_entropy(output.flatten(0, 1), following.flatten())
    return loss, {"bits_per_byte": loss.detach() / math.log(2)}


def recipe(
    *,
    data: str = "data/stdlib-shards",
    steps: int = 700,
    batch_size: int = 16,
    lr: float = 3e-3,
    layers: int = 4,
    width: int = 192,
    context: int = 256,
    precision: str = "bf16",
    seed: int = 0,
    mesh: str = "dp",
) -> hr.Trainer:
    """`batch_size` counts the windows of `context` bytes of all processes together."""
    torch.manual_seed(seed)

    def windows(split):
        # One token more than the context: each window is what is read and, one further on, what is to be said.
        return hr.open(f"{data}/{split}").windows(context + 1, stride=context)

    train, test = windows("train"), windows("test")
    return hr.Trainer(
        Transformer(layers, width, heads=width // 32),
        next_byte,
        hr.Loader(hr.Stream(train, seed=seed), global_batch_size=batch_size),
        inputs=before,
        optimizer=hr.adamw(lr=lr, betas=(0.9, 0.95), weight_decay=0.1),
        schedule=hr.cosine(warmup_steps=50, final=0.1),
        evaluate=hr.Loader(hr.Stream(test, shuffle=False), global_batch_size=64, drop_last=False),
        steps=steps,
        checkpoint_every=200,
        clip_grad_norm=1.0,
        precision=precision,
        seed=seed,
        mesh=mesh,
    )
