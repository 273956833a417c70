"""Check a result against its manifest, and against what it was made from.

`run` puts the parts together. Without the inputs: `claims` reads the manifest and compares
it with itself, and `folder` compares it with the files. With them: `inputs` compares hashes
and plans, and `recomputation` makes every tensor again by another route. `stored` measures
how far the stored numbers are, and `comparison` decides within the table of `tolerances`.
"""
