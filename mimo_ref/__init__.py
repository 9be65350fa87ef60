"""MiMo-Audio in plain PyTorch: the truth that every other package is judged against.

Read in the order of the data: `mel` -> `tokenizer_encoder` -> `rvq` -> `patch_encoder` ->
`backbone` -> `patch_decoder` -> `tokenizer_decoder` -> `vocoder`; `model` puts them together.

Shapes in comments: B batch, T frames or positions, P patches, K codebooks, G group size, D width,
H heads, S cache capacity, V vocabulary.
"""
