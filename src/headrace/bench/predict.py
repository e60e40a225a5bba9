"""From the rates of stages to predictions: what each change would make of the rate that was reached."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from headrace.bench.model import Amdahl, Model, useful_threads
from headrace.bench.rates import Rate
from headrace.bench.result import Remedy, Stage
from headrace.bench.subject import Subject
from headrace.bench.variants import Variant

HAND_OFF = "hand-off"
_STEPS = ("decode", "augment")
_BEYOND_CORES = (2, 4)
"""Times as many threads as processors are worth a look where steps wait: for a service, say."""
_LEAST_PROCESSORS = 0.1
_SCALES_WELL = 0.75
"""Threads that make less than this share of as many times one thread's rate wait for the interpreter lock."""

Rates = Mapping[tuple[str, int], Rate]
"""By stage and number of threads."""


def stages_of(rates: Rates, subject: Subject) -> list[Stage]:
    """The stages as the feed has them, in the order of the flow."""
    threads = {"storage": subject.readers, "verify": subject.readers, HAND_OFF: 1}
    return [
        Stage(name, count, rates[name, count], rates.get((name, 1)) if name in _STEPS and count > 1 else None)
        for name in ("storage", "verify", *_STEPS, HAND_OFF)
        if (name, count := threads.get(name, subject.threads)) in rates
    ]


def model_of(rates: Rates, subject: Subject) -> Model:
    """The feed as arithmetic has it."""
    readers = subject.readers
    used = [rates["storage", readers], rates["verify", readers]]
    used += [rates[name, 1] for name in _STEPS if (name, 1) in rates]
    hand_off = rates[HAND_OFF, 1].samples_per_sec
    return Model(
        storage=rates["storage", readers].samples_per_sec,
        verify=rates["verify", readers].samples_per_sec,
        transform=_transform(rates, subject),
        hand_off=hand_off,
        # At its ceiling the hand-off, whose process is not asked, keeps about one processor busy.
        cpu_sec=sum(rate.cpu_sec_per_sample for rate in used) + 1 / hand_off,
        processors=_processors(rates, subject),
    )


def predictions(model: Model, reached: Rate, subject: Subject, variants: Mapping[Variant, Rate]) -> list[Remedy]:
    """What each change is predicted to give, the largest gain first."""
    before = model.samples_per_sec(subject.threads)

    def remedy(name: str, how: str, after: float, threads: int | None = None, processes: int | None = None) -> Remedy:
        return Remedy(name, how, reached.samples_per_sec * after / before, after / before, threads, processes)

    remedies = [remedy(one.name, one.how, _changed(model, one, rate, subject)) for one, rate in variants.items()]
    if (threads := _more_threads(model, subject)) is not None:
        how = f"headrace.Loader(..., threads={threads})"
        remedies.append(remedy(f"threads={threads}", how, model.samples_per_sec(threads), threads=threads))
    if _threads_hinder(model, subject):
        how = f"headrace.Loader(..., processes={subject.cores}): the steps wait for a lock, the interpreter's as a rule"
        after = model.with_processes(subject.cores)
        remedies.append(remedy(f"processes={subject.cores}", how, after, processes=subject.cores))
    return sorted(remedies, key=lambda remedy: -remedy.gain)


def _transform(rates: Rates, subject: Subject) -> Amdahl | None:
    """Decoding and augmenting, one after the other in a thread: their seconds add."""
    steps = [_step(name, rates, subject) for name in _STEPS if (name, 1) in rates]
    if not steps:
        return None
    return Amdahl(sum(one.serial_sec for one in steps), sum(one.parallel_sec for one in steps))


def _step(name: str, rates: Rates, subject: Subject) -> Amdahl:
    """How threads share the work, by what they do on processors of their own; how long it takes, as it took.

    Who holds the lock works: no more of it is serial than a processor was busy with.
    """
    threads, several = subject.threads, subject.several
    shared = Amdahl.of(rates[name, 1].unstarved, rates[name, several].unstarved, several)
    sec = 1 / rates[name, threads].samples_per_sec
    serial_sec = min(shared.serial_sec * sec * shared.samples_per_sec(threads), rates[name, 1].cpu_sec_per_sample)
    return Amdahl(serial_sec, (sec - serial_sec) * threads)


def _processors(rates: Rates, subject: Subject) -> float:
    """How many of the processors others on this machine leave to threads that are as many or more; never none."""
    shares = [rates[name, subject.several].starved_share for name in _STEPS if (name, 1) in rates]
    left = max(subject.several, subject.cores) * (1 - max(shares, default=0.0))
    return max(_LEAST_PROCESSORS, min(subject.cores, left))


def _more_threads(model: Model, subject: Subject) -> int | None:
    """The fewest threads, more than now, that do nearly as well as any."""
    counts = [*subject.sweep(), *(times * subject.cores for times in _BEYOND_CORES)]
    more = [count for count in counts if count > subject.threads]
    return None if model.transform is None or not more else useful_threads(model, more)


def _threads_hinder(model: Model, subject: Subject) -> bool:
    """Whether threads that transform wait for each other."""
    transform, cores = model.transform, subject.cores
    if transform is None or cores == 1:
        return False
    return transform.samples_per_sec(cores) < _SCALES_WELL * cores * transform.samples_per_sec(1)


def _changed(model: Model, variant: Variant, rate: Rate, subject: Subject) -> float:
    """The model's rate with the one stage as measured of the variant; storage gives as many bytes/s as before."""
    now = rate.samples_per_sec
    if variant.stage == "storage":
        return replace(model, storage=now).samples_per_sec(subject.threads)
    model = replace(model, storage=_over(model.storage, variant.bytes_ratio))
    if variant.stage == "verify":
        return replace(model, verify=now).samples_per_sec(subject.threads)
    assert model.transform is not None
    longer = model.transform.samples_per_sec(subject.threads) / now
    changed = replace(
        model,
        verify=_over(model.verify, variant.bytes_ratio),
        transform=model.transform.times(longer),
        cpu_sec=model.cpu_sec * longer,  # nearly all of it is the steps'
    )
    return changed.samples_per_sec(subject.threads)


def _over(rate: float, bytes_ratio: float) -> float:
    """The rate for samples of so many times as many bytes; of none, which are not read at all, there is no limit."""
    return rate / bytes_ratio if bytes_ratio else math.inf
