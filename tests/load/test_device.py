"""Copies to a CUDA device. They run where there is one."""

import pytest
import torch

import headrace as hr


@pytest.mark.gpu
def test_batches_on_the_device_equal_those_on_the_host(tmp_path):
    samples = ({"__key__": f"{i:04d}", "cls": i, "txt": f"text {i}"} for i in range(600))
    hr.pack(samples, tmp_path / "packed")
    stream = hr.Stream(hr.open(tmp_path / "packed"), epochs=3).decode()
    with hr.Loader(stream, batch_size=32, device="cuda") as there, hr.Loader(stream, batch_size=32) as here:
        for moved, batch in zip(there, here, strict=True):
            assert moved["cls"].device.type == "cuda"
            assert torch.equal(moved["cls"].cpu(), batch["cls"])
            assert moved["txt"] == batch["txt"]


def test_another_device_is_refused(tmp_path):
    hr.pack(({"cls": i} for i in range(10)), tmp_path / "packed")
    loader = hr.Loader(hr.Stream(hr.open(tmp_path / "packed")), batch_size=2, device="meta")
    with pytest.raises(hr.errors.OptionError, match=r"device is None, cpu, or a CUDA device of this machine: got meta"):
        next(iter(loader))
