"""The fused step: what the launches of `triton_kernels` walk, and who launches them.

layout    how one tensor lies in the workspace and which products rotate it
columns   the tables' columns, shared with the kernels
tables    tasks and tiles of every launch, from layouts and addresses
twins     what every kernel computes, in plain torch
engine    memory, uploads and the order of the launches
"""
