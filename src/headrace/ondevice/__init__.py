"""What happens to a whole batch, on the device: normalisation, mixing, decoding. Steps for `Loader(on_device=)`.

Imports torch.
"""

from headrace.ondevice.decode import DecodeJpeg
from headrace.ondevice.mixing import CutMix, Mixup, OneOf
from headrace.ondevice.normalize import Normalize
from headrace.ondevice.steps import Batch, BatchStep, Steps

__all__ = ["Batch", "BatchStep", "CutMix", "DecodeJpeg", "Mixup", "Normalize", "OneOf", "Steps"]
