"""Products: what a request means. A flow reads feature rows, asks the engine, and writes one served event a request.

predict.py (plain V2), recommend.py (rank given candidates), collect.py (outcomes). Import what you need from its file:
recommend.py brings the compiled feature rows with it, the others do not.
"""
