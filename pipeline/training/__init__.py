"""This package trains a network for a stage: windows, steps, batches, the loop, validation, checkpoints."""
