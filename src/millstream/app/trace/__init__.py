"""The story of one request, from the log and the repository; `app/story.py` tells it.

- `told.py`: what a story holds.
- `answer.py`: who asked and who answered, with every candidate's way to its place.
- `names.py`: what the tokens of a feature row stood for.
- `afterwards.py`: what people did, the examples of it, and the pushes that learnt them.
"""
