"""The engine that a stage trains a network with: steps, batches, the loop, validation, checkpoints."""
