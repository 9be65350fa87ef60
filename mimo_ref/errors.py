"""Errors of the reference: what the user gave is wrong (exit code 2 of the command line)."""


class ConfigError(ValueError):
    """A config.json that this code does not cover, or that contradicts itself."""


class CheckpointError(ValueError):
    """A checkpoint folder whose files are missing, damaged, or do not match its config."""


class MissingPackage(RuntimeError):
    """A package that was asked for is not installed (exit code 3)."""

    exit_code = 3
