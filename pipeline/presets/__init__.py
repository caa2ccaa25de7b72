"""Commands that write params.yaml: `preset` and `migrate`."""
