"""Float models from PyTorch, ONNX and TFLite as Relax modules with ``main``.

Every importer returns a module whose ``main`` has its constants bound and the attributes
``resq.inputs``, ``resq.outputs`` and ``resq.names`` that `canonicalize` reads. All operators that
cannot be imported are listed in one error before anything is converted.
"""
