"""Raw files in, a dataset snapshot out: what was kept, what went and why, row by row.

`readers` turns files into rows or quarantines them, `rows` knows the three shapes, `rules` judges single rows, `exact`,
`minhash` and `near` find repeats, `components` decides which copy stays. All of that is pure. `curate` maps it over Ray
Data and publishes the artifact; `snapshot` and `diff` read it back. `python_docs` is the source that comes with Python.
"""
