"""Ending a pack from within, before any chosen step by which it changes the disk, as a crash would."""

import os

STEPS = ("fsync", "ftruncate", "replace", "rename", "unlink", "write", "rmdir")


class Stop(Exception):
    """What ends it."""


def count_steps(patch, stop_at, work):
    """Count the calls by which `work` changes the disk; raise Stop in place of number `stop_at` and of all after it."""
    steps = []
    for name in STEPS:
        original = getattr(os, name)

        def step(*args, original=original, name=name, **options):
            steps.append(name)
            if stop_at is not None and len(steps) > stop_at:
                raise Stop
            return original(*args, **options)

        patch.setattr(os, name, step)
    work()
    return steps
