"""Check a result against its manifest, and against what it was made from.

`run` puts the parts together: `document` reads the manifest, `claims` holds it against
itself, `files` against the folder, `inputs` against the two sides by name and hash, and
`recomputation` against a second computation of every number.
"""
