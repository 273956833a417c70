"""Check a result against its manifest, and against what it was made from.

`run` puts the parts together, and compares inputs and plans. Without the inputs: `claims` reads
the manifest and compares it with itself, and `folder` compares it with the files. With them:
`recomputation` makes every tensor again by another route, `stored` measures how far the stored
numbers are, and `tolerances` decides.
"""
