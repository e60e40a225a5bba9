"""What a guarded loop of one process does with one step."""

import json

import pytest
import torch

import headrace as hr
from headrace.adapters.guarded import Guarded
from headrace.errors import OptionError, TrainingError


class Loop:
    """A model of one weight, on which the loss and its gradient are what a test says, and its guarded steps."""

    def __init__(self, optimizer=None, **guards):
        self.model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(self.model.weight)
        self.optimizer = optimizer or torch.optim.SGD(self.model.parameters(), lr=1.0)
        self.guarded = Guarded(self.model, self.optimizer, hr.Guards(**guards))

    @property
    def weight(self):
        return self.model.weight.item()

    def backward(self, factor=0.01, batch=None):
        loss = self.model.weight.sum() * factor
        self.guarded.add(loss, batch)
        loss.backward()

    def step(self, factor=0.01):
        self.optimizer.zero_grad()
        self.backward(factor)
        allowed = self.guarded.allows()
        if allowed:
            self.optimizer.step()
        return allowed

    def found(self, guard):
        return [finding.step for finding in self.guarded.findings if finding.guard == guard]


NAN = float("nan")


def test_what_is_found_after_the_end_of_the_record_is_found_all_the_same(tmp_path):
    loop = Loop()
    monitor = hr.Monitor(tmp_path)
    loop.guarded._recorded = monitor
    assert not loop.step(NAN)
    monitor.close()
    assert not loop.step(NAN)
    loop.guarded._tell(2, [0.1], [0.1])
    assert loop.found("finite") == [1, 2]
    assert (tmp_path / "events.jsonl").read_text().count('"event":"guard"') == 1


def test_the_learning_rate_backs_off_for_the_step_only():
    loop = Loop(back_off=0.5, recovery_steps=1)
    schedule = torch.optim.lr_scheduler.ConstantLR(loop.optimizer, factor=1.0)
    assert not loop.step(NAN)
    for moved in (0.005, 0.01):  # half of it, then won back
        before = loop.weight
        assert loop.step(0.01)
        assert before - loop.weight == pytest.approx(moved, rel=1e-4)
        assert loop.optimizer.param_groups[0]["lr"] == 1.0
        schedule.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda params: torch.optim.AdamW(params, lr=0.1, weight_decay=0.1),
        hr.adamw(0.1, weight_decay=0.1),
        hr.lamb(0.1, weight_decay=0.1),
        hr.adafactor(0.1, weight_decay=0.1),
    ],
    ids=["sgd", "adamw", "fused adamw", "lamb", "adafactor"],
)
def test_an_optimizer_that_is_asked_for_a_refused_step_all_the_same_changes_nothing(make):
    model = torch.nn.Linear(3, 2)
    optimizer = make(list(model.parameters()))
    guarded = Guarded(model, optimizer, hr.Guards())

    def step(x):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        guarded.add(loss)
        loss.backward()
        allowed = guarded.allows()
        optimizer.step()
        return allowed

    assert step(torch.ones(4, 3))
    before = [param.clone() for param in model.parameters()], str(optimizer.state_dict())
    assert not step(torch.full((4, 3), NAN))
    assert all(map(torch.equal, before[0], model.parameters()))
    assert str(optimizer.state_dict()) == before[1]


def test_a_gradient_that_is_not_finite_is_enough():
    loop = Loop()
    loop.backward()
    loop.model.weight.grad.fill_(float("inf"))
    assert not loop.guarded.allows()
    assert "the gradient is not finite" in loop.guarded.findings[0].detail


def test_of_accumulated_losses_the_bad_one_names_its_samples():
    loop = Loop()
    loop.backward(0.01, {"__key__": ["a"]})
    loop.backward(NAN, {"__key__": ["b"]})
    assert not loop.guarded.allows()
    assert loop.guarded.findings[0].fields["keys"] == [["b"]]
    assert loop.guarded.step == 1


def test_accumulated_losses_are_one_of_their_sum():
    loop = Loop(spike_window=16, spike_steps=1, snapshot_every=5)
    for _ in range(16):
        assert loop.step(0.0)
    for _ in range(2):
        loop.backward(50.0)
    assert loop.guarded.allows()
    assert "the loss 100 is" in loop.guarded.findings[0].detail


def test_a_run_goes_back_to_what_was_copied_before_the_spike():
    loop = Loop(spike_window=16, spike_steps=2, snapshot_every=20)
    weights = []
    for _ in range(40):
        loop.step(0.001)
        weights.append(loop.weight)
    loop.step(50.0)
    loop.step(-50.0)
    assert loop.found("rollback") == [42]
    assert loop.weight == weights[19]


def test_what_follows_a_step_that_nobody_made_is_done_before_the_next():
    loop = Loop(spike_window=16, spike_steps=1, snapshot_every=20)
    for _ in range(40):
        loop.step(0.001)
    loop.backward(50.0)
    assert loop.guarded.allows()
    assert not loop.found("rollback")
    loop.backward(0.001)
    assert loop.found("rollback") == [41]


def test_a_saved_state_goes_on_and_no_copy_of_another_model_stays():
    loop = Loop(spike_window=16, spike_steps=1, snapshot_every=20)
    for _ in range(40):
        loop.step(0.001)
    state = json.loads(json.dumps(loop.guarded.state_dict()))
    later = Loop(spike_window=16, spike_steps=1, snapshot_every=20)
    later.model.load_state_dict(loop.model.state_dict())
    later.guarded.load_state_dict(state)
    later.step(50.0)
    assert later.found("spike") == later.found("rollback") == [41]
    assert later.weight == loop.weight


def test_a_state_amid_spikes_is_not_fit_to_be_saved():
    loop = Loop(spike_window=16, spike_steps=3)
    for _ in range(20):
        loop.step(0.001)
    assert loop.guarded.settle()
    loop.step(50.0)
    assert not loop.guarded.settle()


def test_a_closed_one_lets_go_of_the_optimizer():
    loop = Loop(back_off=0.5)
    loop.step(NAN)
    loop.guarded.close()
    before = loop.weight
    loop.model.weight.grad = torch.full_like(loop.model.weight, 0.01)
    loop.optimizer.step()
    assert before - loop.weight == pytest.approx(0.01, rel=1e-4)


def test_a_question_without_loss_or_gradients_is_refused():
    loop = Loop()
    with pytest.raises(TrainingError, match="no loss was added"):
        loop.guarded.allows()
    loop.guarded.add(torch.tensor(1.0))
    with pytest.raises(TrainingError, match="no parameter of the optimizer has a gradient"):
        loop.guarded.allows()


def test_a_loss_of_several_numbers_is_refused():
    loop = Loop()
    with pytest.raises(TrainingError, match=r"got shape \(4,\); take its mean"):
        loop.guarded.add(torch.ones(4))
    with pytest.raises(TrainingError, match="got a float"):
        loop.guarded.add(1.0)


def test_what_cannot_be_guarded_is_refused(monkeypatch):
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(OptionError, match=r"guards must be headrace\.Guards: got a bool"):
        Guarded(model, optimizer, True)
    with pytest.raises(OptionError, match="leave replay_every away"):
        Guarded(model, optimizer, hr.Guards(replay_every=10))
    with pytest.raises(OptionError, match="recorded must be the loop's Recorded or Monitor, or None: got a list"):
        Guarded(model, optimizer, hr.Guards(), recorded=[])
    optimizer.scaler = object()  # as Accelerate's has it in fp16
    with pytest.raises(OptionError, match="gradients of a scaled loss say nothing of the model"):
        Guarded(model, optimizer, hr.Guards())
    del optimizer.scaler
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="2 processes must have met"):
        Guarded(model, optimizer, hr.Guards())
