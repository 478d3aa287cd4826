"""How good finished runs are: on images, against each other, and as files.

`runs` (what was trained) -> `quality` (bpp and PSNR of an image) -> `curves` (R-D points, BD-rate)
and `reach` (steps and seconds to Adam's final loss) -> `pictures` and `report`. `coding` turns an
image into bytes and back. `int8` (what 8 bits hold) and `adaround` (which weights to round up) ->
`quantization` of a model.
"""
