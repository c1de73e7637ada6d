"""Kernels in Triton, one idea a file; all their shapes are constants when they are compiled.

columns.py            what is done with results column by column, as a constant program: :func:`evaluate`
weights.py            integers of quantised weights as floats
rowwise.py            embedding, normalisation, rotation, the cache: a row or a head at a time
matvec.py             one row times a matrix, normalised on the way in
matmul.py             rows times a matrix, by tiles
decode_attention.py   one query at a time, its keys split between programs
prefill_attention.py  queries of one sequence by tiles
choose.py             the likeliest tokens

A token's facts are four int32 in ``batch``: the token, its position (-1 where a step is filled up),
its sequence's row in ``pages``, and which row's logits are the n-th that is wanted. ``pages`` has a
row of page numbers for each sequence. Pages are ``[kv heads, tokens of a page, head]`` of float16.
"""
