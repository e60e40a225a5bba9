"""A recipe to search in: its loss says by the settings alone how good they are, so a test knows what must come."""

import shutil
from pathlib import Path

import pytest

HELPERS = Path(__file__).parents[1] / "train"

RECIPE = '''
import os, time
from pathlib import Path
import problems as p
from memory_loader import MemoryLoader
import torch
import headrace as hr

def recipe(*, lr: float = 0.1, width: int = 16, kind: str = "plain", epochs: int = 2, flag: bool = False,
           mesh: str = "dp", sizes: tuple[int, ...] = (1, 2), hold: str = "") -> hr.Trainer:
    """`hold`: at the second step, leave a file of this name and the process's id, and wait until the file is gone."""
    torch.set_num_threads(1)
    if kind == "broken":
        raise ValueError("no such kind")
    steps = iter(range(1, 10**9))

    def loss(output, batch):
        if torch.is_grad_enabled() and next(steps) == 2 and hold and not Path("go").exists():
            Path(hold).write_text(str(os.getpid()))
            while Path(hold).exists():
                time.sleep(0.01)
        if kind == "nan" and not torch.is_grad_enabled():
            return output.sum() * float("nan")
        return p.cross_entropy(output, batch) * 0 + abs(lr - 0.3) + output.sum() * 0

    if Path("poor").exists():  # endless, and worse than any
        epochs, lr = 10**6, 9.0
    held_out = MemoryLoader(p.fields(24, seed=2), 12, shuffle=False, drop_last=False)
    metrics = {"score": lambda output, batch: torch.full((len(output),), -abs(lr - 0.3)), "correct": p.correct}
    return p.trainer(loss=loss, epochs=epochs, mesh=mesh, optimizer=hr.sgd(lr), evaluate=held_out,
                     loader=MemoryLoader(p.fields(24), 12), metrics=metrics, clip_grad_norm=1.0)

def unevaluated(*, lr: float = 0.1) -> hr.Trainer:
    return p.trainer(steps=2)
'''


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """The working directory, with the recipe `small.py` in it."""
    for name in ("problems.py", "memory_loader.py"):
        shutil.copy(HELPERS / name, tmp_path)
    (tmp_path / "small.py").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path
