"""Name the precision of products of float32 factors, for the kernels that round as little as float32 does."""

# Three products on tensor cores, as exact as one of float32, twice as fast. Triton's interpreter multiplies in float32.
PRECISION = "tf32x3"
