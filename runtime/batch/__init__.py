"""Many prompts at once: records in, answers out, many sequences in each decode.

:class:`~.batch_engine.BatchEngine` is what a library uses; :mod:`.records` and :mod:`.reading` make
its input, :mod:`.journal` keeps its output so that a run can be resumed.
"""
