"""Does it still speak and listen? Nano, judged by its own score."""
