"""The Siren model: M isolated transformers over the codebooks of a residual vector quantiser (paper section 4.1).

`codebooks` turns codes into vectors, `blocks` holds the two kinds of transformer block, `transformer` is one isolated
transformer (temporal path F_m, residual decoder R_m, heads C), `siren` is the collaboration of all of them, `arms`
names the arrangements of the paper's tables and gives them equal size.
The legend of shapes is in `siren.shapes`.
"""
