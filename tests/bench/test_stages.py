"""Which steps of a stream belong to which stage."""

from headrace.bench.stages import split_ops
from headrace.transform import Decode, RandomHorizontalFlip, RandomResizedCrop, with_step


def test_a_crop_that_is_one_step_with_the_decoding_is_in_its_stage():
    decode, crop, flip = Decode(scaled=True), RandomResizedCrop(8), RandomHorizontalFlip()
    fused = with_step([decode], crop)
    assert split_ops((*fused, flip)) == (fused, (flip,))
    assert split_ops((Decode(), crop, flip)) == ((Decode(),), (crop, flip))
