"""What is said: prompts, templates, the text tokenizer, presets, conversations, answers."""
