"""Texts in, log-probabilities out: how likely a model finds what is written.

:class:`~.scorer.Scorer` is what a library uses; :mod:`.score_records` makes its input, and
:mod:`.joining` says which tokens are scored, given which others.
"""
