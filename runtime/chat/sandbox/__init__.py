"""The program that renders chat templates, in a process of its own: see :mod:`.main`.

It is started without site-packages and knows nothing of the rest of the package.
"""
