"""Every error that headrace raises on purpose.

    HeadraceError
      OptionError        a value or a combination of options that cannot work   (also a ValueError)
      SourceError        what is to be packed is missing, empty or broken
      TargetError        the place to write to is taken, busy or half-done
      StorageError       the disk or the store refused: full, no permission, gone
      DatasetError       what should be a dataset is not one
        ManifestError      its manifest is malformed or of a later version
        DamagedError       bytes are missing or differ from their checksum
      TransformError     a function applied to a sample failed; names the sample
      StateError         a saved state belongs to something else
      LoaderError        the loader process ended without being asked to, too often in a row
      RecipeError        a recipe cannot be read, or its settings do not fit
      TrainingError      training cannot go on
        CheckpointError    a checkpoint cannot be written or read

A message has the rule, the value found and the way out, on one line. This module imports nothing of ours.
"""

from __future__ import annotations


class HeadraceError(Exception):
    """The root: catch this to catch all that headrace raises on purpose."""


class OptionError(HeadraceError, ValueError):
    """A value or a combination of options that cannot work; raised before any work starts."""


class SourceError(HeadraceError):
    """What is to be packed is missing, empty or broken."""


class TargetError(HeadraceError):
    """The place to write to holds something else, is busy, or was left half-done."""


class StorageError(HeadraceError):
    """The disk or the store refused: full, no permission, gone."""


class DatasetError(HeadraceError):
    """What should be a dataset is not one."""


class ManifestError(DatasetError):
    """A manifest that is malformed, or of a version this release does not know."""


class DamagedError(DatasetError):
    """Bytes are missing or differ from their checksum; the message names shard and sample."""


class TransformError(HeadraceError):
    """A function applied to a sample failed, or its result does not fit the batch; names the sample."""


class StateError(HeadraceError):
    """A saved state belongs to another dataset, order or batch size."""


class LoaderError(HeadraceError):
    """The loader process ended without being asked to, and is not replaced once more."""


class RecipeError(HeadraceError):
    """A recipe cannot be read, or a setting does not fit its parameters."""


class TrainingError(HeadraceError):
    """Training cannot go on; names the rank and the step."""


class CheckpointError(TrainingError):
    """A checkpoint cannot be written or read."""
