"""The models of gpu_train.py, in as few lines as they take, with weights at random: GPT-2, a Llama and ResNet-50."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """Of a language model."""

    vocabulary: int
    length: int
    width: int
    layers: int
    heads: int
    key_heads: int
    hidden: int


GPT2_124M = Shape(50304, 1024, 768, 12, 12, 12, 3072)
"""With the vocabulary of 50,257 rounded up to a multiple of 64."""
LLAMA_1B = Shape(32000, 2048, 2048, 16, 32, 8, 8192)
"""As Llama 3.2 1B, but for its vocabulary: 1.1 billion parameters."""
TINY = Shape(64, 32, 32, 2, 4, 2, 64)


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(batch, length, width) to (batch, heads, length, width of a head)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class Gpt2Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm, self.qkv = nn.LayerNorm(shape.width), nn.Linear(shape.width, 3 * shape.width)
        self.out, self.norm_mlp = nn.Linear(shape.width, shape.width), nn.LayerNorm(shape.width)
        self.up, self.down = nn.Linear(shape.width, shape.hidden), nn.Linear(shape.hidden, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (heads_of(part, self.heads) for part in self.qkv(self.norm(x)).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm_mlp(x)), approximate="tanh"))


class Gpt2(nn.Module):
    """With learned positions and tied embeddings, without dropout: tokens to logits."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.places = nn.Embedding(shape.length, shape.width)
        self.blocks = nn.ModuleList(Gpt2Block(shape) for _ in range(shape.layers))
        self.norm, self.head = nn.LayerNorm(shape.width), nn.Linear(shape.width, shape.vocabulary, bias=False)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def angles(shape: Shape, base: float = 500_000.0) -> Tensor:
    """Of rotary positions: (length, half a head's width)."""
    half = shape.width // shape.heads // 2
    return torch.arange(shape.length)[:, None] * base ** (-torch.arange(half) / half)


def rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Both halves of every head, turned by its place's angles."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), -1).to(x.dtype)


class LlamaBlock(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.key_heads = shape.heads, shape.key_heads
        keys = shape.width // shape.heads * shape.key_heads
        self.norm, self.norm_mlp = nn.RMSNorm(shape.width), nn.RMSNorm(shape.width)
        self.query, self.out = (nn.Linear(shape.width, shape.width, bias=False) for _ in range(2))
        self.key, self.value = (nn.Linear(shape.width, keys, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(shape.width, shape.hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        inner = self.norm(x)
        query = rotated(heads_of(self.query(inner), self.heads), cosines, sines)
        key = rotated(heads_of(self.key(inner), self.key_heads), cosines, sines)
        value = heads_of(self.value(inner), self.key_heads)
        key, value = (part.repeat_interleave(self.heads // self.key_heads, 1) for part in (key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        inner = self.norm_mlp(x)
        return x + self.down(functional.silu(self.gate(inner)) * self.up(inner))


class Llama(nn.Module):
    """With grouped keys and rotary positions: tokens to logits."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(LlamaBlock(shape) for _ in range(shape.layers))
        self.norm, self.head = nn.RMSNorm(shape.width), nn.Linear(shape.width, shape.vocabulary, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.register_buffer("cosines", angles(shape).cos(), persistent=False)
        self.register_buffer("sines", angles(shape).sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x, self.cosines, self.sines)
        return self.head(self.norm(x))


class Bottleneck(nn.Module):
    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        out = 4 * inner
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.around: nn.Module = nn.Identity()
        if stride > 1 or channels != out:
            self.around = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.convolutions(x) + self.around(x))


def resnet(depths: tuple[int, ...], classes: int, width: int = 64) -> nn.Module:
    """A ResNet of bottlenecks, whose 3 x 3 convolutions have the strides: depths of 3, 4, 6, 3 are ResNet-50."""
    blocks, channels = [], width
    for stage, depth in enumerate(depths):
        inner = width * 2**stage
        for number in range(depth):
            blocks.append(Bottleneck(channels, inner, 2 if stage and not number else 1))
            channels = 4 * inner
    stem = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    return nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1), nn.Sequential(*blocks), *head)
