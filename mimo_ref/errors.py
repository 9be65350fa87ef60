"""Errors of the reference: something the user gave is wrong (exit code 2 of the command line)."""


class ConfigError(ValueError):
    """A config.json that this code does not cover, or that contradicts itself."""


class CheckpointError(ValueError):
    """A checkpoint folder whose files are missing, damaged, or do not match its config."""
