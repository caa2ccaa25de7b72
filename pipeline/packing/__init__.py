"""Pack windows into batches, on the host and on the device. Nothing here knows a network."""
