"""Turn a Hugging Face checkpoint into one quantized GGUF file.

Goes in: a folder with config.json, weights and a tokenizer. Comes out: a GGUF file and a
:class:`~.report.ConversionReport`.
"""
