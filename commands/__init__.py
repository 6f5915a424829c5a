"""The commands of ``infer-os``, one module each: parse, make settings, call once, render.

Heavy imports (numpy, llama.cpp) happen inside the commands, so that ``--help`` stays quick.
"""
