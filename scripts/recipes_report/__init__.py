"""What the recipes cost: the tables of docs/quantization.md (`python -m`)."""
