"""How good finished runs are: on images, against each other, and as files.

`runs` (what was trained) -> `quality` (bpp and PSNR of an image) -> `curves` (R-D points, BD-rate,
steps and seconds to Adam's final loss, drawings) -> `report`. `coding` turns an image into bytes
and back. `int8` (what 8 bits hold, and which weights to round up) -> `quantization` of a model.
"""
