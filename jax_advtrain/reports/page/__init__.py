"""The page that every command ends with: one file, no network, drawn from what the workdir holds.

render.py      Jinja2, autoescaped; the file, whole or not at all
run.py         the page of a run; comparison.py, comparison_of_runs.py: those of comparisons
verdict.py     two sentences, the numbers, what calls them in question
charts.py      Vega-Lite specifications; colours are CSS variables, so that both schemes are one drawing
training.py, classes.py, gallery.py, evaluations.py, studies.py: the sections
templates/, static/, vega/: what the file is put together from
"""
