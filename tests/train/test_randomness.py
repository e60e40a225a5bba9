from __future__ import annotations

import random

import numpy as np
import torch

from headrace.train.randomness import random_state, seed_all, set_random_state

CPU = torch.device("cpu")


def draw():
    return random.random(), random.gauss(0, 1), np.random.random(), np.random.normal(), torch.rand(3).tolist()


def test_generators_go_on_as_if_nothing_had_happened():
    """Also between the two numbers that a normal distribution makes at once."""
    seed_all(1, rank=0)
    draw()
    state = random_state(CPU)
    expected = [draw() for _ in range(3)]
    seed_all(2, rank=5)
    draw()
    set_random_state(state, CPU)
    assert [draw() for _ in range(3)] == expected


def test_the_state_is_tensors_of_the_same_shapes_at_any_time():
    shapes = []
    for number in range(3):
        seed_all(number, rank=0)
        shapes.append({name: tuple(value.shape) for name, value in random_state(CPU).items()})
        draw()
    assert shapes[0] == shapes[1] == shapes[2]


def test_ranks_draw_different_numbers_and_the_same_again():
    drawn = []
    for seed, rank in ((0, 0), (0, 1), (1, 0), (0, 0)):
        seed_all(seed, rank)
        drawn.append(draw())
    assert drawn[0] == drawn[3]
    assert len({str(numbers) for numbers in drawn}) == 3
