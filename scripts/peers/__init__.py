"""Recordings of implementations that no one here wrote, to be judged by `mimo-edge validate`.

Each runs in an environment of its own: its packages are no dependency of ours.
"""
