"""Two towers for retrieval: a vector of a user and one of an item, trained in torch on what was liked, served as ONNX.

`settings` needs nothing beside the core, as it is read wherever an installation is opened; `rows` and `judge` need the
extra `recommend`; the others `torch`, too. So nothing is imported here.
"""
