"""Implement `pipeline.ops` on a GPU. Only this package, `decoding/` and the kernels of strategies import Triton."""
