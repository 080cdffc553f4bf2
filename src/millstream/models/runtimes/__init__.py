"""Programs that run model files, one module a format; each is imported only when a model of its format is loaded."""
