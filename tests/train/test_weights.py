from __future__ import annotations

import json
import struct

import pytest
import torch
from problems import largest_difference, layered, network, trainer, weights
from processes import HERE, run_ranks
from torch import nn

import headrace as hr
from headrace.errors import CheckpointError, StateError

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64"}


def write(path, tensors, **metadata):
    """A safetensors file, as its specification says."""
    table, data = {"__metadata__": metadata} if metadata else {}, b""
    for name, tensor in tensors.items():
        own = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        place = [len(data), len(data) + len(own)]
        table[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        data += own
    header = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


@pytest.fixture
def saved(tmp_path):
    return write(tmp_path / "model.safetensors", weights(network(seed=7)), format="pt")


def test_a_file_or_its_folder_fills_the_model(saved):
    for path in (saved, str(saved), saved.parent):
        model = network()
        assert hr.load_weights(model, path) == hr.load_weights(model, path)
        assert largest_difference(weights(model), weights(network(seed=7))) == 0


def test_files_of_the_safetensors_library_are_read(tmp_path):
    library = pytest.importorskip("safetensors.torch")
    model = nn.Sequential(network(seed=7), nn.BatchNorm1d(3))
    model[0].to(torch.bfloat16)
    library.save_file(model.state_dict(), tmp_path / "x.safetensors")
    other = nn.Sequential(network(), nn.BatchNorm1d(3))
    hr.load_weights(other, tmp_path)
    assert (
        largest_difference(weights(other), {n: t.to(other.state_dict()[n].dtype) for n, t in weights(model).items()})
        == 0
    )


def test_an_index_says_which_file_has_what(tmp_path):
    state = weights(network(seed=7))
    table = {}
    for number, (name, tensor) in enumerate(state.items()):
        write(tmp_path / f"part-{number}.safetensors", {name: tensor})
        table[name] = f"part-{number}.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    model = network()
    hr.load_weights(model, tmp_path)
    assert largest_difference(weights(model), state) == 0
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*part-1.safetensors: No such file"):
        hr.load_weights(model, tmp_path)


def test_values_take_the_models_dtype(tmp_path):
    state = {name: tensor.to(torch.bfloat16) for name, tensor in weights(network(seed=7)).items()}
    model = network()
    hr.load_weights(model, write(tmp_path / "a.safetensors", state))
    assert {param.dtype for param in model.parameters()} == {torch.float32}
    assert largest_difference(weights(model), {name: tensor.float() for name, tensor in state.items()}) == 0


def test_names_are_mapped_by_prefix_and_rename(tmp_path):
    state = {f"body.{name.replace('3.', 'last.')}": tensor for name, tensor in weights(network(seed=7)).items()}
    path = write(tmp_path / "a.safetensors", {**state, "body.mask": torch.ones(2), "head.weight": torch.ones(1)})
    model = network()
    hr.load_weights(model, path, prefix="body.", rename=lambda n: None if n == "mask" else n.replace("last.", "3."))
    assert largest_difference(weights(model), weights(network(seed=7))) == 0


def test_what_differs_is_listed_at_once_and_nothing_is_loaded(tmp_path):
    state = weights(network(seed=7))
    state["0.weights"] = state.pop("0.weight")
    path = write(tmp_path / "a.safetensors", state)
    model = network()
    with pytest.raises(
        StateError, match=r"missing in it: 0\.weight; not in the model: 0\.weights; map names by prefix= or rename="
    ):
        hr.load_weights(model, path)
    assert largest_difference(weights(model), weights(network())) == 0
    found = hr.load_weights(model, path, strict=False)
    assert (found.missing, found.unexpected) == (("0.weight",), ("0.weights",))
    assert torch.equal(model[3].weight, state["3.weight"])
    assert torch.equal(model[0].weight, network()[0].weight)


@pytest.mark.parametrize("strict", [True, False])
def test_shapes_that_differ_are_refused_with_both(saved, strict):
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 4))
    before = weights(model)
    with pytest.raises(StateError, match=r"3\.weight is \(3, 16\) there and \(4, 16\) here.*3\.bias is \(3,\)"):
        hr.load_weights(model, saved, strict=strict)
    assert largest_difference(weights(model), before) == 0


def test_whole_numbers_do_not_become_weights(tmp_path):
    path = write(tmp_path / "a.safetensors", {"weight": torch.ones(1, 2, dtype=torch.int64)})
    with pytest.raises(StateError, match=r"weight is int64 \(1, 2\) there and \(1, 2\) here"):
        hr.load_weights(nn.Linear(2, 1, bias=False), path)


def test_a_file_of_nothing_that_fits_is_refused_even_if_not_strict(saved):
    with pytest.raises(StateError, match=r"no name is the same, such as 0\.weight and weight"):
        hr.load_weights(nn.Linear(2, 1), saved, strict=False)


def test_a_model_on_meta_is_refused_with_the_way_out(saved):
    with pytest.raises(StateError, match=r"0\.weight, .* lies on device meta; call model\.to_empty"):
        hr.load_weights(network().to("meta"), saved)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "epoch.ckpt"])
def test_pickles_are_refused_with_the_way_out(tmp_path, name):
    torch.save(weights(network()), tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(CheckpointError, match=r"is a pickle, which may run code .*convert it"):
            hr.load_weights(network(), path)


def test_an_index_may_not_lead_elsewhere(tmp_path):
    for name, said in (("../a.safetensors", "not a plain file"), ("a.bin", "is a pickle")):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
        with pytest.raises(CheckpointError, match=said):
            hr.load_weights(network(), tmp_path)


def test_a_folder_without_weights_says_what_it_looked_for(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither model.safetensors.index.json nor .*no .safetensors file"):
        hr.load_weights(network(), tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot read .*: No such file"):
        hr.load_weights(network(), tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("damage", ["cut", "cut in its header", "text", "place", "dtype", "json"])
def test_a_damaged_file_is_told_and_leaves_the_model_alone(saved, damage):
    data = bytearray(saved.read_bytes())
    if damage == "cut":
        data = data[:-1]
    elif damage == "cut in its header":
        data = data[:50]
    elif damage == "text":
        data = b"version https://git-lfs.github.com/spec/v1\n"
    elif damage == "place":
        data = data.replace(b"[0, ", b"[4, ", 1)
    elif damage == "dtype":
        data = data.replace(b"F32", b"Q32", 1)
    else:
        data[9] = 0
    saved.write_bytes(data)
    model = network()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        hr.load_weights(model, saved)
    assert largest_difference(weights(model), weights(network())) == 0


class Tied(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Linear(6, 3)
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.first(self.body(x)).relu())


def test_of_tied_weights_one_name_is_enough(tmp_path):
    state = weights(Tied(7))
    for left_out in ("first.weight", "last.weight"):
        model = Tied(1)
        path = write(tmp_path / "a.safetensors", {name: t for name, t in state.items() if name != left_out})
        assert hr.load_weights(model, path).missing == ()
        assert largest_difference(weights(model), state) == 0


def test_tied_weights_are_saved_once_and_resumed(tmp_path):
    made = trainer(Tied(3), run_dir=tmp_path, optimizer=hr.adamw(0.01))
    made.fit(steps=4)
    state = torch.distributed.checkpoint.FileSystemReader(tmp_path / "checkpoints/step-00000004").read_metadata()
    assert "model.first.weight" in state.state_dict_metadata
    assert "model.last.weight" not in state.state_dict_metadata
    model = Tied(8)
    trainer(model, run_dir=tmp_path, optimizer=hr.adamw(0.01)).fit(steps=4)
    assert largest_difference(weights(model), weights(made.model)) == 0


def test_every_mesh_starts_from_them(tmp_path):
    """Loaded before the model is distributed, or after."""
    write(tmp_path / "start.safetensors", weights(layered(seed=7)))
    run_ranks(2, [HERE / "scenarios.py", "started", "--out", tmp_path], TEST_MESH="fsdp")
    model = layered(seed=7)
    trainer(model, steps=3).fit()
    for rank in range(2):
        found = torch.load(tmp_path / f"started-{rank}.pt", weights_only=False)
        assert largest_difference(found["parallelized"], weights(layered(seed=7))) == 0
        assert largest_difference(found["trained"], weights(model)) <= 1e-6
