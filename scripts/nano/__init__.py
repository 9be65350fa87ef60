"""Training of nano: a very small MiMo-Audio that really speaks and listens.

`python -m mimo_edge.scripts.nano all` does everything; `docs/nano.md` says what comes out. In the
order of the data: `grammar` -> `voices`, `speak` -> `data` -> `train_tokenizer` ->
`text_tokenizer`, `timing`, `lessons` -> `namers`, `forcing`, `train_lm` -> `save` -> `evaluate`.

Shapes in comments: B batch, N samples, T frames, P patches, K codebooks, G group size, D width,
V vocabulary.
"""
