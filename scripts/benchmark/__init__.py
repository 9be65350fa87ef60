"""What `mimo-edge bench` measures, and how it is shown."""
