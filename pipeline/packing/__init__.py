"""What a batch is, on the host and on the device. Nothing here knows a network."""
