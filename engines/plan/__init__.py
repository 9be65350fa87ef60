"""What a model needs of a device and how fast it will be there, before anything is exported."""
