"""Check a result against its manifest, and against what it was made from.

`run` puts the parts together. Without the inputs: `document` reads the manifest, `claims`
compares it with itself, `folder` with the files. With them: `inputs` compares hashes and
plans, and `recomputation` makes every tensor again by another route; `stored` compares what
is stored, within the one table of `tolerances`.
"""
