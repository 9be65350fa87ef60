"""Random checkpoints in the layout of the released ones."""
