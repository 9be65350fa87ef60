"""Names of files in a manifest, which may come from anywhere."""

_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{d}{n}" for d in ("COM", "LPT") for n in range(10))}


def plain_name(name: object) -> bool:
    """Whether it names a file in a folder, and on every system nothing else."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= 255
        and name.isprintable()
        and not set(name) & set('/\\:*?"<>|')
        and not name.endswith((".", " "))
        and name.partition(".")[0].upper() not in _DEVICES
    )
