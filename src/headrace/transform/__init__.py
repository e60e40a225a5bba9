"""What happens to one sample: decoding, image steps, the user's functions.

Without I/O; torch comes with torchvision's transforms and with video only.
"""

from headrace.transform.audio import DecodeAudio
from headrace.transform.augment import ColorJitter, RandomErasing
from headrace.transform.borders import Pad, RandomCrop
from headrace.transform.cast import Cast, may_cast
from headrace.transform.chain import Filter, Map, apply, as_op, output_fields
from headrace.transform.decode import Decode
from headrace.transform.foreign import Albumentations, Torchvision
from headrace.transform.image import (
    CenterCrop,
    Normalize,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomVerticalFlip,
    Resize,
)
from headrace.transform.lasting import describe_steps, lasting_steps, may_write_arrays
from headrace.transform.pixels import prepare_worker
from headrace.transform.probe import probe_image
from headrace.transform.rng import batch_rng, sample_rng, seed_globals
from headrace.transform.scaled import ScaledDecode, with_step
from headrace.transform.spec import ArraySpec, Encoded, Fields, Op, Ragged, Sample, spec_of
from headrace.transform.video import DecodeVideo

__all__ = [
    "Albumentations",
    "ArraySpec",
    "Cast",
    "CenterCrop",
    "ColorJitter",
    "Decode",
    "DecodeAudio",
    "DecodeVideo",
    "Encoded",
    "Fields",
    "Filter",
    "Map",
    "Normalize",
    "Op",
    "Pad",
    "Ragged",
    "RandomCrop",
    "RandomErasing",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomVerticalFlip",
    "Resize",
    "Sample",
    "ScaledDecode",
    "Torchvision",
    "apply",
    "as_op",
    "batch_rng",
    "describe_steps",
    "lasting_steps",
    "may_cast",
    "may_write_arrays",
    "output_fields",
    "prepare_worker",
    "probe_image",
    "sample_rng",
    "seed_globals",
    "spec_of",
    "with_step",
]
