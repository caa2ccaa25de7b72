"""Stage count: how often items come together in the training part, for the baselines and for the fusion of views."""
