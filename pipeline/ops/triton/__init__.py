"""The GPU kernels of `pipeline.ops`. Only this package, `decoding/` and a strategy's own kernel import Triton."""
