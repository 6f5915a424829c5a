"""Measure models: speed, memory and quality, as rows that say what was run.

Goes in: engines, files and settings. Come out: :class:`~.rows.Row` records, the only source
of tables, plots and the report.
"""
